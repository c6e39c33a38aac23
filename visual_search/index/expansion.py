"""Marks of related rows (a category, a brand) become marks of their products, a slice at a time.

Each slice is a short transaction that also moves the mark's cursor, so a killed worker loses one slice at the most and
several workers never do the same one.
"""

from __future__ import annotations

import math
import time
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction

from visual_search.catalog import get_catalog
from visual_search.index import relations
from visual_search.index.marks import mark_keys, unmarked
from visual_search.models import IndexMark, model_label

SLICE = 1000  # products marked in one transaction


def expand_related_marks(database: str, *, seconds: float = math.inf) -> int:
    """Mark the products of related rows until none is left or the time is over. Return how many were marked."""
    deadline = time.monotonic() + seconds
    marked = 0
    for label in related_labels(database):
        while (mark := _oldest(label, database)) is not None:
            marked += _expand_slice(mark, database)
            if time.monotonic() >= deadline:
                return marked
    return marked


def related_labels(database: str) -> list[str]:
    """Return the models, besides the product, that have marks: a few look-ups in the index, however many there are."""
    products = model_label(get_catalog().model)
    labels = IndexMark.objects.using(database).order_by("model_label").values_list("model_label", flat=True)
    found: list[str] = []
    last = ""
    while (label := labels.filter(model_label__gt=last).first()) is not None:
        last = label
        if label != products:
            found.append(label)
    return found


def _oldest(label: str, database: str) -> IndexMark | None:
    return IndexMark.objects.using(database).filter(model_label=label).order_by("pk").first()


def _expand_slice(mark: IndexMark, database: str) -> int:
    """Mark the next products of a related row and move its cursor; past the last one, delete the mark."""
    marks = IndexMark.objects.using(database)
    if not mark.expanded_through:
        # The same row saved again before any of its products was read: one expansion serves all of them.
        marks.filter(model_label=mark.model_label, key=mark.key, expanded_through="", pk__gt=mark.pk).delete()
    products = relations.affected_products(mark.model_label, [mark.key], database=database)
    rows = products.order_by("pk").values_list("pk", flat=True).distinct()
    cursor = _cursor(mark)
    keys = [str(pk) for pk in (rows if cursor is None else rows.filter(pk__gt=cursor))[:SLICE]]
    wanted = unmarked(keys)
    with transaction.atomic(using=database):
        own = marks.filter(pk=mark.pk, expanded_through=mark.expanded_through)
        is_ours = own.update(expanded_through=keys[-1]) if len(keys) == SLICE else own.delete()[0]
        return mark_keys(wanted, kind=mark.kind, is_bulk=True) if is_ours else 0


def _cursor(mark: IndexMark) -> Any:
    """Return the key after which the expansion continues; from the start if the product's key has another type now."""
    try:
        return get_catalog().model._meta.pk.to_python(mark.expanded_through) if mark.expanded_through else None
    except ValidationError:
        return None
