"""The sweep, each minute: mark changes that sent no signal and retries that are due, prune, feed and repair."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator
from typing import Any

from django.db import transaction
from django.db.models import Exists, Max, OuterRef
from django.db.models.functions import Now

from visual_search.catalog import Catalog, get_catalog
from visual_search.conf import get_settings
from visual_search.index import feed, repair
from visual_search.index.claims import update_in_order
from visual_search.index.marks import mark_unmarked
from visual_search.index.plans import UNREADABLE, product_digest
from visual_search.index.versions import find_active
from visual_search.models import (
    Embedding,
    FeedState,
    IndexEntry,
    IndexMark,
    IndexVersion,
    QueueState,
    get_singleton,
)

logger = logging.getLogger(__name__)

SLICE = 500  # products compared in one go


def sweep() -> dict[str, int]:
    """Sweep once and return counts. `waiting` is 1 if a drain should be requested."""
    database = get_catalog().database
    version = find_active()
    report = {"retried": 0, "found": 0, "pruned": 0, "repaired": 0}
    if version is not None:
        report["retried"] = mark_due_retries(version, database)
        report["found"] = mark_differences(version, database, seconds=get_settings().SWEEP_SECONDS)
        report["pruned"] = prune_tombstones(database)
        feed.feed_shared_store(version)
        report["repaired"] = repair.repair_shared_store(version)
    get_singleton(QueueState, database)
    QueueState.objects.using(database).filter(pk=1).update(swept_at=Now())
    report["waiting"] = int(IndexMark.objects.using(database).exists())
    return report


def mark_due_retries(version: IndexVersion, database: str) -> int:
    """Mark the products whose next attempt is due."""
    due = IndexEntry.objects.using(database).filter(version=version, next_attempt_at__lte=Now())
    keys = list(due.values_list("key", flat=True)[:SLICE])
    with transaction.atomic(using=database):
        marked = mark_unmarked(keys, kind=IndexMark.Kind.RETRY)
        update_in_order(due.filter(key__in=keys), next_attempt_at=None)
    return marked


def mark_differences(version: IndexVersion, database: str, *, seconds: float) -> int:
    """Compare products with entries and mark what differs, from where the last sweep ended. Return how many.

    It finds products whose content is not indexed, and entries of products that no longer exist.
    """
    deadline = time.monotonic() + seconds
    state = get_singleton(QueueState, database)
    found = 0
    for product_key, keys in differing_products(version, database, after=state.swept_product):
        found += mark_unmarked(keys)
        state.swept_product = product_key
        if time.monotonic() >= deadline:
            break
    else:
        state.swept_product = ""
    for entry_pk, keys in orphaned_entries(version, database, after=state.swept_entry):
        found += mark_unmarked(keys)
        state.swept_entry = entry_pk
        if time.monotonic() >= deadline:
            break
    else:
        state.swept_entry = 0
    state.save(using=database, update_fields=["swept_product", "swept_entry"])
    return found


def differing_products(version: IndexVersion, database: str, *, after: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield per slice: the last key compared, and the keys of products whose content differs from the index."""
    catalog = get_catalog()
    products = catalog.queryset().using(database).order_by("pk")
    entries = IndexEntry.objects.using(database).filter(version=version)
    last: Any = after or None
    while page := list((products if last is None else products.filter(pk__gt=last))[:SLICE]):
        last = page[-1].pk
        known = {entry.key: entry for entry in entries.filter(key__in=[str(row.pk) for row in page])}
        yield str(last), [str(row.pk) for row in page if _differs(catalog, row, known.get(str(row.pk)))]


def _differs(catalog: Catalog, product: Any, entry: IndexEntry | None) -> bool:
    if entry is not None and entry.state == IndexEntry.State.FAILED and not entry.content_digest:
        return False  # failed because its workers died; a save or `reindex_products --missing` tries again
    return entry is None or entry.content_digest != _digest(catalog, product)


def _digest(catalog: Catalog, product: Any) -> str:
    try:
        return product_digest(catalog.payload(product), catalog.images_of(product))
    except Exception:  # the shop's code; the drain writes the reason into the entry
        logger.debug("Product %s can't be read through the catalogue", product.pk, exc_info=True)
        return UNREADABLE


def orphaned_entries(version: IndexVersion, database: str, *, after: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield per slice: the last entry compared, and the keys of entries whose product may no longer be indexed."""
    entries = IndexEntry.objects.using(database).filter(version=version).exclude(state=IndexEntry.State.REMOVED)
    while page := list(entries.filter(pk__gt=after).order_by("pk").values_list("pk", "key")[:SLICE]):
        after = page[-1][0]
        keys = [key for _, key in page]
        possible = get_catalog().valid_keys(keys)
        existing = get_catalog().queryset().using(database).filter(pk__in=possible).values_list("pk", flat=True)
        yield after, sorted(set(keys) - {str(pk) for pk in existing})


def prune_tombstones(database: str) -> int:
    """Delete old tombstones, and entries of removed products that have no embeddings left. Return the tombstones."""
    old = datetime.timedelta(days=get_settings().TOMBSTONE_DAYS)
    with transaction.atomic(using=database):
        tombstones = Embedding.objects.using(database).filter(vector=None, written_at__lt=Now() - old)
        through = tombstones.aggregate(last=Max("seq"))["last"]
        if through is None:
            return 0
        state = FeedState.objects.using(database).select_for_update().get(pk=1)
        state.pruned_through = max(state.pruned_through, through)
        state.save(using=database, update_fields=["pruned_through"])
        pruned, _ = tombstones.filter(seq__lte=through).delete()
        rows = Embedding.objects.using(database).filter(version=OuterRef("version"), product_key=OuterRef("key"))
        marks = IndexMark.objects.using(database).filter(key=OuterRef("key"))
        IndexEntry.objects.using(database).filter(
            ~Exists(rows), ~Exists(marks), state=IndexEntry.State.REMOVED, claim_token=None
        ).delete()
    return pruned
