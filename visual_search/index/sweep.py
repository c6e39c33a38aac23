"""The sweep, each minute: mark changes that sent no signal and retries that are due, prune, feed and repair."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now

from visual_search.catalog import Catalog, get_catalog
from visual_search.conf import get_settings
from visual_search.index import feed, repair
from visual_search.index.claims import has_work, update_in_order
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
    model_label,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SLICE = 500  # products compared in one go
PRUNE_SLICE = 500  # tombstones deleted in one transaction
FEED_SECONDS = 20.0  # of a shared store; the next task continues
SWEEP_GAP_SECONDS = 10  # between two sweeps


def sweep() -> dict[str, int]:
    """Sweep once and return counts. `waiting` is 1 if a drain should be requested; `failed` counts failed steps."""
    database = get_catalog().database
    version = find_active()
    report = {"retried": 0, "found": 0, "pruned": 0, "repaired": 0, "failed": 0}
    if version is not None:
        seconds = get_settings().SWEEP_SECONDS
        steps: dict[str, Callable[[], int]] = {
            "retried": lambda: mark_due_retries(version, database),
            "found": lambda: mark_differences(version, database, seconds=seconds),
            "pruned": lambda: prune_tombstones(database, seconds=seconds),
            "fed": lambda: int(feed.feed_shared_store(version, seconds=FEED_SECONDS)),
            "repaired": lambda: repair.repair_shared_store(version),
        }
        for name, step in steps.items():
            try:
                report[name] = step()
            except Exception:  # the shop's code, or one table's trouble: the other steps matter as much
                logger.exception("The sweep's step %r failed; the next sweep tries again", name)
                report["failed"] += 1
    get_singleton(QueueState, database)
    QueueState.objects.using(database).filter(pk=1).update(swept_at=Now())
    report["waiting"] = int(bool(report.pop("fed", 0)) or has_work(database))
    return report


def is_due(database: str) -> bool:
    """Return whether the last sweep is long enough ago: after a stop, django-q2 runs each sweep that was missed."""
    recent = QueueState.objects.using(database).filter(
        swept_at__gt=Now() - datetime.timedelta(seconds=SWEEP_GAP_SECONDS), swept_at__lte=Now()
    )
    return not recent.exists()


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

    It finds products whose content is not indexed, and entries of products that no longer exist. Each of the two gets
    half of the time, so that neither waits for a whole round of the other.
    """
    started = time.monotonic()
    state = get_singleton(QueueState, database)
    products = differing_products(version, database, after=state.swept_product)
    found, product = _mark_slices(products, until=started + seconds / 2)
    entries = orphaned_entries(version, database, after=state.swept_entry)
    orphaned, entry = _mark_slices(entries, until=started + seconds)
    state.swept_product, state.swept_entry = product or "", entry or 0
    state.save(using=database, update_fields=["swept_product", "swept_entry"])
    return found + orphaned


def _mark_slices(slices: Iterator[tuple[T, list[str]]], *, until: float) -> tuple[int, T | None]:
    """Mark what each slice found. Return how many, and where the next sweep continues: None after the last slice."""
    found = 0
    for last, keys in slices:
        found += mark_unmarked(keys)
        if time.monotonic() >= until:
            return found, last
    return found, None


def differing_products(version: IndexVersion, database: str, *, after: str = "") -> Iterator[tuple[str, list[str]]]:
    """Yield per slice: the last key compared, and the keys of products whose content differs from the index."""
    catalog = get_catalog()
    products = catalog.queryset().using(database).order_by("pk")
    entries = IndexEntry.objects.using(database).filter(version=version)
    last = _to_key(catalog, after)
    while page := list((products if last is None else products.filter(pk__gt=last))[:SLICE]):
        last = page[-1].pk
        known = {entry.key: entry for entry in entries.filter(key__in=[str(row.pk) for row in page])}
        yield str(last), [str(row.pk) for row in page if _differs(catalog, row, known.get(str(row.pk)))]


def _to_key(catalog: Catalog, text: str) -> Any:
    """Return a key that a sweep has noted; None, which begins anew, where the product's key has another type by now."""
    try:
        return catalog.model._meta.pk.to_python(text) if text else None
    except ValidationError:
        return None


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


def prune_tombstones(database: str, *, seconds: float = math.inf) -> int:
    """Delete old tombstones, and entries of removed products that have no embeddings left. Return the tombstones.

    A slice at a time, oldest first, each in a short transaction: finishing drains wait for the same lock.
    """
    deadline = time.monotonic() + seconds
    old = datetime.timedelta(days=get_settings().TOMBSTONE_DAYS)
    tombstones = Embedding.objects.using(database).filter(vector=None, written_at__lt=Now() - old)
    pruned = 0
    while page := list(tombstones.order_by("written_at").values_list("pk", "seq", "product_key")[:PRUNE_SLICE]):
        with transaction.atomic(using=database):
            state = FeedState.objects.using(database).select_for_update().get(pk=1)
            # Still a tombstone: the image may have come back under the same id since.
            deleted, _ = tombstones.filter(pk__in=[pk for pk, _, _ in page]).delete()
            state.pruned_through = max(state.pruned_through, *(seq for _, seq, _ in page))
            state.save(using=database, update_fields=["pruned_through"])
            _prune_entries(database, {key for _, _, key in page})
        pruned += deleted
        if time.monotonic() >= deadline:
            return pruned
    return pruned


def _prune_entries(database: str, product_keys: set[str]) -> None:
    rows = Embedding.objects.using(database).filter(version=OuterRef("version"), product_key=OuterRef("key"))
    marks = IndexMark.objects.using(database).filter(model_label=model_label(get_catalog().model), key=OuterRef("key"))
    versions = list(IndexVersion.objects.using(database).values_list("pk", flat=True))  # for the index on both columns
    IndexEntry.objects.using(database).filter(
        ~Exists(rows), ~Exists(marks), version__in=versions, key__in=product_keys, state=IndexEntry.State.REMOVED,
        claim_token=None,
    ).delete()  # fmt: skip
