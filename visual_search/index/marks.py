"""Mark products as changed: called by this package and by the shop's code."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from django.db import connections
from django.db.models import Max, QuerySet

from visual_search.catalog import get_catalog
from visual_search.index import relations
from visual_search.index.queue import request_drain
from visual_search.models import IndexEntry, IndexMark, model_label

logger = logging.getLogger(__name__)

Target = tuple[str, str]  # model label and key

DIRECT_MAX = 100  # products marked at once that still go before those of a bulk change
KEY_LENGTH = 255  # characters that the tables hold; PostgreSQL holds no NUL
_databases_with_tables: set[str] = set()


def have_tables(database: str) -> bool:
    """Return whether marks can be written: not before the app's first migration. One query a process."""
    if database not in _databases_with_tables:
        connection = connections[database]
        with connection.cursor() as cursor:
            if IndexMark._meta.db_table in connection.introspection.table_names(cursor):
                _databases_with_tables.add(database)
    return database in _databases_with_tables


def mark(targets: Iterable[Target], *, using: str, kind: str = IndexMark.Kind.CHANGED, is_bulk: bool = False) -> int:
    """Mark rows as changed, in one INSERT, and ask for a drain after the commit. Return how many were marked.

    is_bulk: products that were saved by themselves are claimed before these.
    """
    rows = []
    for label, key in dict.fromkeys(targets):
        if len(key) > KEY_LENGTH or "\0" in key:
            logger.error("%s %.60r… can't be indexed: keys have at most %d characters", label, key, KEY_LENGTH)
        else:
            rows.append(IndexMark(model_label=label, key=key, kind=kind, is_bulk=is_bulk))
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
    marked = 0
    for keys in relations.iter_key_slices(products.using(get_catalog().database)):
        marked += mark_keys(keys, kind=kind, is_bulk=marked + len(keys) > DIRECT_MAX)
    return marked


def mark_keys(keys: list[str], *, kind: str = IndexMark.Kind.CHANGED, is_bulk: bool = False) -> int:
    """Mark products by key, in one INSERT. Return how many."""
    catalog = get_catalog()
    targets = [(model_label(catalog.model), key) for key in keys]
    return mark(targets, using=catalog.database, kind=kind, is_bulk=is_bulk)


def mark_unmarked(keys: list[str], *, kind: str = IndexMark.Kind.CHANGED) -> int:
    """Mark those products of a bulk that no unclaimed mark names yet. Return how many."""
    return mark_keys(unmarked(keys), kind=kind, is_bulk=True)


def unmarked(keys: list[str]) -> list[str]:
    """Return the products that no mark names, except marks that a claim has seen.

    A claim that is under way may have read the product before its change; one that comes later will read it after.
    """
    catalog = get_catalog()
    marks = IndexMark.objects.using(catalog.database).filter(model_label=model_label(catalog.model), key__in=keys)
    newest = dict(marks.values_list("key").annotate(Max("pk")).order_by())
    if newest:
        entries = IndexEntry.objects.using(catalog.database).filter(key__in=list(newest), claim_token__isnull=False)
        claimed = entries.values_list("key").annotate(Max("claimed_through")).order_by()
        for key, through in claimed:
            if newest[key] <= through:
                del newest[key]
    return [key for key in keys if key not in newest]
