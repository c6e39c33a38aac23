"""Short transactions that claim dirty products, renew their lease and release them (finish.py commits results).

They do no I/O besides their own statements, and none is open while an image is read or embedded.
"""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Value
from django.db.models.functions import Concat, Now

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.models import IndexEntry, IndexMark, IndexVersion, model_label

MARKS_PER_CLAIM = 5_000  # further marks of the same products are left for the next claim
SPARE_KEYS = 192  # for workers that claim at the same moment: three claims of the usual size
MARKS_PER_PRODUCT = 4  # marks read for each product to claim; one product may have several

GIVEN_UP_FOR = datetime.timedelta(days=1)  # a product that killed MAX_ATTEMPTS workers

State = IndexEntry.State


@dataclass(slots=True)
class ClaimedProduct:
    """A dirty product that only this process may index until its lease ends. indexed_digest: empty unless indexed."""

    key: str
    attempts: int
    is_forced: bool
    mark_ids: list[int] = field(default_factory=list)
    indexed_digest: str = ""


@dataclass(slots=True)
class Claim:
    """The products that one worker has claimed. is_build: for an inactive version; it has no marks."""

    version: IndexVersion
    token: uuid.UUID
    products: dict[str, ClaimedProduct]
    is_build: bool = False


def has_work(database: str) -> bool:
    """Return whether marks wait, or products that the active version has still to catch up with."""
    pending = IndexEntry.objects.using(database).filter(
        version__state=IndexVersion.State.ACTIVE, state=IndexEntry.State.PENDING
    )
    return IndexMark.objects.using(database).exists() or pending.exists()


def claim(version: IndexVersion, *, limit: int) -> Claim | None:
    """Claim up to `limit` dirty products that no other worker has claimed. Return None if there are none.

    A product whose last worker died is claimed alone and after the others, so that it can't affect them again. After
    MAX_ATTEMPTS deaths its entry becomes failed.
    """
    return _claim(version, limit, _claimable_dirty_entries)


def claim_pending(version: IndexVersion, *, limit: int) -> Claim | None:
    """Claim products that are pending in an inactive version; otherwise as `claim`."""
    return _claim(version, limit, _claimable_pending_entries)


def _claim(
    version: IndexVersion, limit: int, find_claimable: Callable[[IndexVersion, str, int], list[IndexEntry]]
) -> Claim | None:
    database = version._state.db or get_catalog().database
    token = uuid.uuid4()
    is_build = find_claimable is _claimable_pending_entries
    while True:
        with transaction.atomic(using=database):
            entries = find_claimable(version, database, limit)
            if not entries:
                return None
            abandoned = [entry for entry in entries if entry.claim_token is not None]
            exhausted = [entry for entry in abandoned if entry.attempts >= get_settings().MAX_ATTEMPTS]
            if exhausted:
                _give_up(exhausted, database)
                continue
            chosen = [entry for entry in entries if entry.claim_token is None] or abandoned[:1]
            return Claim(version, token, _record_claim(chosen, token, database, is_build=is_build), is_build)


def _claimable_dirty_entries(version: IndexVersion, database: str, limit: int) -> list[IndexEntry]:
    """Return locked entries of products that have marks and no unexpired lease, single saves before bulk changes."""
    entries = IndexEntry.objects.using(database).filter(version=version)
    keys = dirty_keys(version, database, limit)
    if not keys:
        return []
    known = set(entries.filter(key__in=keys).values_list("key", flat=True))
    missing = [IndexEntry(version=version, key=key) for key in sorted(keys) if key not in known]
    entries.bulk_create(missing, ignore_conflicts=True)
    place = {key: at for at, key in enumerate(keys)}
    wanted = entries.filter(key__in=keys)
    found = list(_lock_claimable(wanted.filter(key__in=keys[:limit], claim_token=None), database, limit))
    if len(found) < limit:  # the first ones are claimed by now, or their workers died
        found += _lock_claimable(wanted.exclude(pk__in=[entry.pk for entry in found]), database, limit - len(found))
    return sorted(found, key=lambda entry: place[entry.key])


def dirty_keys(version: IndexVersion, database: str, limit: int) -> list[str]:
    """Return the products to claim next, and some more because other workers take some of them at the same moment.

    A quarter of the first `limit` is left to bulk changes, so that steady saves can't hold them up for ever.
    """
    marks = unclaimed_marks(version, database)
    window = limit * MARKS_PER_PRODUCT
    direct, bulk = (
        list(dict.fromkeys(marks.filter(is_bulk=is_bulk).order_by("pk").values_list("key", flat=True)[:window]))
        for is_bulk in (False, True)
    )
    first = max(limit - limit // 4, limit - len(bulk))
    return list(dict.fromkeys([*direct[:first], *bulk[:limit], *direct[first:], *bulk]))[: limit + SPARE_KEYS]


def unclaimed_marks(version: IndexVersion | None, database: str) -> QuerySet[IndexMark]:
    """Return the marks of products that no worker holds."""
    leased = leased_entries(version, database).filter(key=OuterRef("key"))
    # A function of the label: by its index, a planner would sort all marks to find the oldest ones.
    marks = IndexMark.objects.using(database).annotate(label=Concat("model_label", Value("")))
    return marks.filter(~Exists(leased), label=model_label(get_catalog().model))


def leased_entries(version: IndexVersion | None, database: str) -> QuerySet[IndexEntry]:
    """Return the entries of products that a worker holds.

    A lease that ends later than a new one would is none: the database's clock was set back.
    """
    entries = IndexEntry.objects.using(database).filter(version=version)
    return entries.filter(lease_until__gt=Now(), lease_until__lte=lease_end())


def _claimable_pending_entries(version: IndexVersion, database: str, limit: int) -> list[IndexEntry]:
    """Return locked pending entries that have no unexpired lease."""
    pending = IndexEntry.objects.using(database).filter(version=version, state=State.PENDING)
    return list(_lock_claimable(pending, database, limit))


def _lock_claimable(entries: QuerySet[IndexEntry], database: str, limit: int) -> QuerySet[IndexEntry]:
    """Return up to `limit` entries without an unexpired lease, locked where the database supports SKIP LOCKED.

    Entries whose worker died come last. Only `limit` entries are locked: other workers skip locked entries and would
    find none. It never waits for a lock, so the order of locks does not matter.
    """
    free = entries.filter(Q(lease_until=None) | Q(lease_until__lte=Now()) | Q(lease_until__gt=lease_end()))
    if connections[database].features.has_select_for_update_skip_locked:
        free = free.select_for_update(skip_locked=True)
    return free.order_by(F("claim_token").asc(nulls_first=True), "key")[:limit]


def _record_claim(
    chosen: list[IndexEntry], token: uuid.UUID, database: str, *, is_build: bool
) -> dict[str, ClaimedProduct]:
    label = model_label(get_catalog().model)
    keys = [] if is_build else [entry.key for entry in chosen]  # a build leaves the marks to the drain
    marks = IndexMark.objects.using(database).filter(model_label=label, key__in=keys).order_by("pk")
    ids: dict[str, list[int]] = defaultdict(list)
    kinds: dict[str, set[str]] = defaultdict(set)
    for pk, key, kind in marks.values_list("pk", "key", "kind")[:MARKS_PER_CLAIM]:
        ids[key].append(pk)
        kinds[key].add(kind)
    by_attempts: dict[int, list[IndexEntry]] = defaultdict(list)
    for entry in chosen:
        # Counted before the work: a killed worker must still cost an attempt. A new change starts at 1.
        is_retry = entry.claim_token is not None or kinds[entry.key] == {IndexMark.Kind.RETRY}
        by_attempts[entry.attempts + 1 if is_retry else 1].append(entry)
    newest = max((pk for mark_ids in ids.values() for pk in mark_ids), default=0)
    for attempts, group in by_attempts.items():
        IndexEntry.objects.using(database).filter(pk__in=[entry.pk for entry in group]).update(
            claim_token=token,
            lease_until=lease_end(),
            claimed_through=newest,
            attempts=attempts,
            next_attempt_at=None,
            error="",
        )
    return {
        entry.key: ClaimedProduct(
            entry.key,
            attempts,
            IndexMark.Kind.FORCED in kinds[entry.key],
            ids[entry.key],
            entry.content_digest if entry.state == State.INDEXED else "",
        )
        for attempts, group in by_attempts.items()
        for entry in group
    }


def _give_up(entries: list[IndexEntry], database: str) -> None:
    """Set entries whose workers kept dying to failed; a change made after the last claim is still tried.

    They are tried again a day later: whatever killed the workers may be gone, and a mark with a lower id that was
    committed after the claim is deleted here too.
    """
    marks = IndexMark.objects.using(database).filter(model_label=model_label(get_catalog().model))
    for entry in entries:
        marks.filter(key=entry.key, pk__lte=entry.claimed_through).delete()
        reason = entry.error or "The worker died without reporting an error"
        IndexEntry.objects.using(database).filter(pk=entry.pk).update(
            state=State.FAILED,
            # The sweep skips failed entries without a digest; otherwise it would kill a worker each minute.
            content_digest="",
            error=f"{reason} ({entry.attempts} times while embedding this product).",
            claim_token=None,
            lease_until=None,
            attempts=0,
            next_attempt_at=Now() + GIVEN_UP_FOR,
        )


def renew(claim: Claim, database: str) -> None:
    """Renew the lease; called before each batch."""
    update_in_order(_held(claim, database), lease_until=lease_end())


def release(claim: Claim, database: str, *, keys: Collection[str] | None = None) -> None:
    """Release unfinished products without counting the attempt: they did not cause the error."""
    held = _held(claim, database) if keys is None else _held(claim, database).filter(key__in=keys)
    counted = held.filter(attempts__gt=0)
    update_in_order(counted, claim_token=None, lease_until=None, attempts=F("attempts") - 1)


def abandon(claim: Claim, database: str, *, error: str) -> None:
    """End the lease now, as if the worker had died: the next claims take each product alone."""
    update_in_order(_held(claim, database), lease_until=Now(), error=clean_error_text(error))


def update_in_order(entries: QuerySet[IndexEntry], **values: Any) -> None:
    """Lock entries in the order that all code uses, then update them. A plain UPDATE locks rows in any order."""
    with transaction.atomic(using=entries.db):
        locked = entries.order_by("key", "version_id").select_for_update()
        IndexEntry.objects.using(entries.db).filter(pk__in=list(locked.values_list("pk", flat=True))).update(**values)


def _held(claim: Claim, database: str) -> QuerySet[IndexEntry]:
    return IndexEntry.objects.using(database).filter(version=claim.version, claim_token=claim.token)


def clean_error_text(*lines: str) -> str:
    return "\n".join(lines).replace("\0", "")  # PostgreSQL rejects NUL


def lease_end() -> Any:
    return Now() + datetime.timedelta(seconds=get_settings().LEASE_SECONDS)
