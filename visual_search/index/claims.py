"""The short transactions around the work: claim dirty products, renew, release, finish.

None of them does I/O besides its own statements, and none is open while an image is read or embedded.
"""

from __future__ import annotations

import datetime
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.models import IndexEntry, IndexMark, IndexVersion, product_label

MARKS_PER_CLAIM = 5_000  # more marks of the same products are left to the next claim
WINDOW = 4  # marks looked at for each product wanted; one product may have several

State = IndexEntry.State


@dataclass(slots=True)
class ClaimedProduct:
    """A dirty product that this process alone may index for now."""

    key: str
    attempts: int
    is_forced: bool
    mark_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Claim:
    """is_build: for a version that is not active; no marks belong to it."""

    version: IndexVersion
    token: uuid.UUID
    products: dict[str, ClaimedProduct]
    is_build: bool = False


def claim(version: IndexVersion, *, limit: int) -> Claim | None:
    """Take up to `limit` dirty products that nobody else works on; None if there are none.

    A product whose last worker died comes alone, after the others, so that it cannot sink them again; after
    MAX_ATTEMPTS deaths it is given up as failed.
    """
    return _claim(version, limit, _free_dirty_entries)


def claim_pending(version: IndexVersion, *, limit: int) -> Claim | None:
    """Take products that a version which is not active has still to catch up with; otherwise as `claim`."""
    return _claim(version, limit, _free_pending_entries)


def _claim(
    version: IndexVersion, limit: int, find_free: Callable[[IndexVersion, str, int], list[IndexEntry]]
) -> Claim | None:
    database = version._state.db or get_catalog().database
    token = uuid.uuid4()
    is_build = find_free is _free_pending_entries
    while True:
        with transaction.atomic(using=database):
            entries = find_free(version, database, limit)
            if not entries:
                return None
            dead = [entry for entry in entries if entry.claim_token is not None]
            hopeless = [entry for entry in dead if entry.attempts >= get_settings().MAX_ATTEMPTS]
            if hopeless:
                _give_up(hopeless, database)
                continue
            chosen = [entry for entry in entries if entry.claim_token is None] or dead[:1]
            return Claim(version, token, _take(chosen, token, database, is_build=is_build), is_build)


def _free_dirty_entries(version: IndexVersion, database: str, limit: int) -> list[IndexEntry]:
    """Return locked entries of products that have marks and no living lease: saved ones first, then those of a bulk."""
    entries = IndexEntry.objects.using(database).filter(version=version)
    keys = dirty_keys(version, database, limit)
    if not keys:
        return []
    known = set(entries.filter(key__in=keys).values_list("key", flat=True))
    missing = [IndexEntry(version=version, key=key) for key in sorted(keys) if key not in known]
    entries.bulk_create(missing, ignore_conflicts=True)
    place = {key: at for at, key in enumerate(keys)}
    wanted = entries.filter(key__in=keys)
    found = list(_lock_free(wanted.filter(key__in=keys[:limit], claim_token=None), database, limit))
    if len(found) < limit:  # the first ones are claimed by now, or their workers died
        found += _lock_free(wanted.exclude(pk__in=[entry.pk for entry in found]), database, limit - len(found))
    return sorted(found, key=lambda entry: place[entry.key])


def dirty_keys(version: IndexVersion, database: str, limit: int) -> list[str]:
    """Return the products to claim next, several times `limit` because other workers take some of them.

    A quarter of the first `limit` is left to bulk changes, so that steady saves can't hold them up for ever.
    """
    marks = unclaimed_marks(version, database)
    window = limit * WINDOW
    direct, bulk = (
        list(dict.fromkeys(marks.filter(is_bulk=is_bulk).order_by("pk").values_list("key", flat=True)[:window]))
        for is_bulk in (False, True)
    )
    first = max(limit - limit // 4, limit - len(bulk))
    return list(dict.fromkeys([*direct[:first], *bulk[:limit], *direct[first:], *bulk]))


def unclaimed_marks(version: IndexVersion | None, database: str) -> QuerySet[IndexMark]:
    """Return the marks of products that no worker holds."""
    leased = leased_entries(version, database).filter(key=OuterRef("key"))
    return IndexMark.objects.using(database).filter(~Exists(leased), model_label=product_label(get_catalog().model))


def leased_entries(version: IndexVersion | None, database: str) -> QuerySet[IndexEntry]:
    """Return the entries of products that a worker holds.

    A lease that ends later than a new one would is none: the database's clock was set back.
    """
    entries = IndexEntry.objects.using(database).filter(version=version)
    return entries.filter(lease_until__gt=Now(), lease_until__lte=lease_end())


def _free_pending_entries(version: IndexVersion, database: str, limit: int) -> list[IndexEntry]:
    """Return locked pending entries that have no living lease."""
    pending = IndexEntry.objects.using(database).filter(version=version, state=State.PENDING)
    return list(_lock_free(pending, database, limit))


def _lock_free(entries: QuerySet[IndexEntry], database: str, limit: int) -> QuerySet[IndexEntry]:
    """Return those without a living lease, locked where the database can skip what others have locked.

    Those whose worker died come last, however many there are. No more are locked than are wanted: another worker
    skips what is locked and would find nothing. It never waits, so the order of locks does not matter.
    """
    free = entries.filter(Q(lease_until=None) | Q(lease_until__lte=Now()) | Q(lease_until__gt=lease_end()))
    if connections[database].features.has_select_for_update_skip_locked:
        free = free.select_for_update(skip_locked=True)
    return free.order_by(F("claim_token").asc(nulls_first=True), "key")[:limit]


def _take(chosen: list[IndexEntry], token: uuid.UUID, database: str, *, is_build: bool) -> dict[str, ClaimedProduct]:
    label = product_label(get_catalog().model)
    keys = [] if is_build else [entry.key for entry in chosen]  # a build leaves the marks to the drain
    marks = IndexMark.objects.using(database).filter(model_label=label, key__in=keys).order_by("pk")
    ids: dict[str, list[int]] = defaultdict(list)
    kinds: dict[str, set[str]] = defaultdict(set)
    for pk, key, kind in marks.values_list("pk", "key", "kind")[:MARKS_PER_CLAIM]:
        ids[key].append(pk)
        kinds[key].add(kind)
    by_attempts: dict[int, list[IndexEntry]] = defaultdict(list)
    for entry in chosen:
        # Counted before the work: a worker that is killed must still cost an attempt. A new change starts at 1.
        goes_on = entry.claim_token is not None or kinds[entry.key] == {IndexMark.Kind.RETRY}
        by_attempts[entry.attempts + 1 if goes_on else 1].append(entry)
    newest = max((pk for some in ids.values() for pk in some), default=0)
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
        entry.key: ClaimedProduct(entry.key, attempts, IndexMark.Kind.FORCED in kinds[entry.key], ids[entry.key])
        for attempts, group in by_attempts.items()
        for entry in group
    }


def _give_up(entries: list[IndexEntry], database: str) -> None:
    """Mark as failed what killed its workers; a change that came after the last claim is still worth a try."""
    marks = IndexMark.objects.using(database).filter(model_label=product_label(get_catalog().model))
    for entry in entries:
        marks.filter(key=entry.key, pk__lte=entry.claimed_through).delete()
        reason = entry.error or "The worker ended without a word"
        IndexEntry.objects.using(database).filter(pk=entry.pk).update(
            state=State.FAILED,
            # Without a digest the sweep passes over it, or it would kill a worker each minute for ever.
            content_digest="",
            error=f"{reason} ({entry.attempts} times while it embedded this product).",
            claim_token=None,
            lease_until=None,
            attempts=0,
            next_attempt_at=None,
        )


def renew(claim: Claim, database: str) -> None:
    """Keep the lease alive; called before each batch."""
    update_in_order(_held(claim, database), lease_until=lease_end())


def release(claim: Claim, database: str) -> None:
    """Give unfinished products back without costing them an attempt: the trouble was not theirs."""
    counted = _held(claim, database).filter(attempts__gt=0)
    update_in_order(counted, claim_token=None, lease_until=None, attempts=F("attempts") - 1)


def abandon(claim: Claim, database: str, *, error: str) -> None:
    """Let the lease end now, as if the worker had died: each product is tried alone next time."""
    update_in_order(_held(claim, database), lease_until=Now(), error=entry_text(error))


def update_in_order(entries: QuerySet[IndexEntry], **values: Any) -> None:
    """Update entries, locked in the order in which everybody locks them: an UPDATE alone takes them as they come."""
    with transaction.atomic(using=entries.db):
        locked = entries.order_by("key", "version_id").select_for_update()
        IndexEntry.objects.using(entries.db).filter(pk__in=list(locked.values_list("pk", flat=True))).update(**values)


def _held(claim: Claim, database: str) -> QuerySet[IndexEntry]:
    return IndexEntry.objects.using(database).filter(version=claim.version, claim_token=claim.token)


def entry_text(*lines: str) -> str:
    return "\n".join(lines).replace("\0", "")  # PostgreSQL refuses NUL


def lease_end() -> Any:
    return Now() + datetime.timedelta(seconds=get_settings().LEASE_SECONDS)
