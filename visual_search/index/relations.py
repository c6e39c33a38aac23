"""Find the relations of the catalogue's paths: changes of their rows change what the index holds of a product."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from django.db.models import Model, Q, QuerySet

from visual_search.catalog import Catalog, find_relation, get_catalog
from visual_search.models import model_label

SLICE = 1000  # product keys per statement, of about 100 KB


@dataclass(frozen=True, slots=True)
class Relation:
    """One step from a parent model to a related one.

    parent_path, path: Django lookups from the product to either side ("" is the product itself).
    foreign_key: the attribute that holds the parent's key, if the related rows point at their parent; otherwise "".
    through: the intermediate model of a many-to-many relation.
    """

    parent: type[Model]
    parent_path: str
    model: type[Model]
    path: str
    foreign_key: str = ""
    through: type[Model] | None = None


@cache
def relations() -> tuple[Relation, ...]:
    """Return every relation on the paths of the catalogue's images, filters and `related`."""
    catalog = get_catalog()
    paths = [catalog.images, *(field.path for field in catalog.filters.values()), *catalog.related]
    return tuple(dict.fromkeys(relation for path in paths for relation in _relations_on_path(catalog, path)))


def _relations_on_path(catalog: Catalog, dotted: str) -> Iterator[Relation]:
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
    """Return the products that these rows of a related model belong to, by any path."""
    catalog = get_catalog()
    condition = Q(pk__in=())
    for relation in relations():
        for model, path in ((relation.parent, relation.parent_path), (relation.model, relation.path)):
            if path and model_label(model) == label:
                condition |= Q(**{f"{path}__pk__in": keys})
    return catalog.model._base_manager.using(database).filter(condition)


def iter_key_slices(products: QuerySet[Any], *, size: int = SLICE) -> Iterator[list[str]]:
    """Yield the distinct keys of `products` in lists of up to `size`, ordered by primary key."""
    rows = products.order_by("pk").values_list("pk", flat=True).distinct()
    last: Any = None
    while page := list((rows if last is None else rows.filter(pk__gt=last))[:size]):
        yield [str(key) for key in page]
        last = page[-1]


def clear_cache() -> None:
    """Clear the cache: the next call reads the catalogue again."""
    relations.cache_clear()
