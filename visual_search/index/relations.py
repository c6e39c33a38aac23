"""Which rows, when they change, change what the index says of a product: read off the catalogue's paths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db.models import Model, Q, QuerySet

from visual_search.catalog import Catalog, find_relation, get_catalog
from visual_search.models import product_label

SLICE = 1000  # product keys written at once; one statement of about 100 KB


@dataclass(frozen=True, slots=True)
class Relation:
    """One step from a parent model to a related one.

    parent_path, path: Django look-ups from the product to either side ("" is the product itself).
    foreign_key: on rows that point at their parent, the attribute that holds its key; otherwise "".
    through: on many-to-many relations, the model between.
    """

    parent: type[Model]
    parent_path: str
    model: type[Model]
    path: str
    foreign_key: str = ""
    through: type[Model] | None = None


@cache
def relations() -> tuple[Relation, ...]:
    """Return every relation that the catalogue's images, filters and `related` go through."""
    catalog = get_catalog()
    paths = [catalog.images, *(field.path for field in catalog.filters.values()), *catalog.related]
    return tuple(dict.fromkeys(relation for path in paths for relation in _steps(catalog, path)))


def _steps(catalog: Catalog, dotted: str) -> Iterator[Relation]:
    parent, parent_path = catalog.model, ""
    for step in dotted.split("."):
        found = find_relation(parent, step)
        if found is None or not isinstance(found.related_model, type):
            return
        path = f"{parent_path}__{found.name}" if parent_path else found.name
        through = getattr(found, "through", None) or getattr(found.remote_field, "through", None)
        points_back = not through and found.auto_created and found.field.target_field.primary_key
        foreign_key = found.field.attname if points_back else ""
        yield Relation(parent, parent_path, found.related_model, path, foreign_key, through)
        parent, parent_path = found.related_model, path


def affected_products(label: str, keys: list[str], *, database: str) -> QuerySet[Any]:
    """Return the products that rows of a related model touch, by whatever path."""
    catalog = get_catalog()
    condition = Q(pk__in=())
    for relation in relations():
        for model, path in ((relation.parent, relation.parent_path), (relation.model, relation.path)):
            if path and product_label(model) == label:
                condition |= Q(**{f"{path}__pk__in": keys})
    return catalog.model._base_manager.using(database).filter(condition)


def in_slices(products: QuerySet[Any], *, size: int = SLICE) -> Iterator[list[str]]:
    """Yield the keys of `products`, each once, `size` at a time, by primary key."""
    rows = products.order_by("pk").values_list("pk", flat=True).distinct()
    last: Any = None
    while page := list((rows if last is None else rows.filter(pk__gt=last))[:size]):
        yield [str(key) for key in page]
        last = page[-1]


def forget() -> None:
    """Read the catalogue again at the next call."""
    relations.cache_clear()
