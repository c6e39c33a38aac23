"""Mark products as changed: called by this package and by the shop's code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db.models import QuerySet

from visual_search.catalog import get_catalog
from visual_search.index import relations
from visual_search.index.queue import request_drain
from visual_search.models import IndexMark, model_label

Target = tuple[str, str]  # model label and key


def mark(targets: Iterable[Target], *, using: str, kind: str = IndexMark.Kind.CHANGED) -> int:
    """Mark rows as changed, in one INSERT, and request a drain after the commit. Return how many were marked."""
    rows = [IndexMark(model_label=label, key=key, kind=kind) for label, key in dict.fromkeys(targets)]
    if rows:
        IndexMark.objects.using(using).bulk_create(rows)
        request_drain(using)
    return len(rows)


def mark_dirty(products: QuerySet[Any], *, kind: str = IndexMark.Kind.CHANGED) -> int:
    """Mark the products of a queryset, one INSERT per slice. For changes without signals: bulk_create, update(), SQL.

    Call it after the change, in the same transaction. Return how many products were marked.
    """
    if not issubclass(products.model, get_catalog().model):
        raise TypeError(f"mark_dirty() takes {get_catalog().model.__name__} rows, not {products.model.__name__} rows.")
    if products.query.is_sliced:  # such as "the first hundred": Django can't reorder a sliced query
        products = products.model._base_manager.filter(pk__in=list(products.values_list("pk", flat=True)))
    return sum(mark_keys(keys, kind=kind) for keys in relations.iter_key_slices(products.using(get_catalog().database)))


def mark_keys(keys: list[str], *, kind: str = IndexMark.Kind.CHANGED) -> int:
    """Mark products by key, in one INSERT. Return how many."""
    catalog = get_catalog()
    return mark([(model_label(catalog.model), key) for key in keys], using=catalog.database, kind=kind)


def mark_unmarked(keys: list[str], *, kind: str = IndexMark.Kind.CHANGED) -> int:
    """Mark those products that have no mark yet: sweeps must not pile up marks while no worker runs."""
    catalog = get_catalog()
    label = model_label(catalog.model)
    marks = IndexMark.objects.using(catalog.database).filter(model_label=label, key__in=keys)
    already = set(marks.values_list("key", flat=True))
    return mark_keys([key for key in keys if key not in already], kind=kind)
