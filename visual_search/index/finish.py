"""The transaction that commits results of claimed products: write embeddings and entries, delete marks."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from visual_search.conf import get_settings
from visual_search.exceptions import VersionSuperseded
from visual_search.index.claims import Claim, clean_error_text
from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, IndexVersion, get_singleton

MAX_BACKOFF_SECONDS = 3600  # longest wait between attempts after a transient error
State = IndexEntry.State


@dataclass(slots=True)
class Result:
    """The outcome for one product.

    rows: embeddings to write; `finish` assigns their seq. is_transient: the error may pass by itself (the
    storage, the encoder, the shop's code), so the product is retried for as long as it lasts. leaves_nothing: it is
    removed and was never embedded, so its entry goes too.
    """

    key: str
    state: str
    content_digest: str = ""
    errors: list[str] = field(default_factory=list)
    rows: list[Embedding] = field(default_factory=list)
    is_transient: bool = False
    may_retry: bool = True
    leaves_nothing: bool = False


@dataclass(slots=True)
class DrainReport:
    """Counts of what one drain did. embedded: images. is_unfinished: the time was up and marks are left."""

    indexed: int = 0
    partial: int = 0
    failed: int = 0
    removed: int = 0
    embedded: int = 0
    is_unfinished: bool = False

    def add(self, result: Result) -> None:
        setattr(self, result.state, getattr(self, result.state) + 1)

    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("indexed", "partial", "failed", "removed", "embedded")}


def finish(claim: Claim, results: Iterable[Result], *, database: str) -> list[Result]:
    """Commit results in one short transaction and return those that were committed.

    A product whose lease was lost is left to its new owner: none of its rows are written and its marks stay. The
    entries of a drain's products become pending in the inactive versions.
    Raises VersionSuperseded, with nothing written, if the version of a drain is no longer active.
    """
    wanted = {result.key: result for result in results}
    with transaction.atomic(using=database):
        others = [] if claim.is_build else _other_versions(claim.version, database)
        entries = _lock_claimed(claim, others, list(wanted), database)
        committed = [wanted[entry.key] for entry in entries]
        mark_ids = [pk for result in committed for pk in claim.products[result.key].mark_ids]
        for pks in _slices(mark_ids, 1000):
            IndexMark.objects.using(database).filter(pk__in=pks).delete()
        for entry in entries:
            _write_result(entry, wanted[entry.key])
        # One INSERT … ON CONFLICT: bulk_update's CASE expressions took ten times as long, under the lock.
        IndexEntry.objects.using(database).bulk_create(
            entries, update_conflicts=True, unique_fields=["id"], update_fields=_ENTRY_FIELDS
        )
        if gone := [entry.pk for entry in entries if wanted[entry.key].leaves_nothing]:
            IndexEntry.objects.using(database).filter(pk__in=gone).delete()
        _set_pending(others, [result.key for result in committed], database)
        _write_embeddings([row for result in committed for row in result.rows], database)
        # Prune and switch take the same lock: either they see the entries that became pending here, or this
        # transaction sees what they did.
        _delete_pruned(others, database)
        if not claim.is_build and not _is_active(claim.version, database):
            raise VersionSuperseded(f"Version {claim.version.pk} is no longer active.")
    return committed


def finish_unchanged(claim: Claim, results: Sequence[Result], *, database: str) -> tuple[list[Result], list[Result]]:
    """Commit that products are indexed as they are. Return those committed, and those that `finish` must commit.

    Nothing is written but the claim's end. It can't be done for a product that another version has indexed otherwise,
    or has still to index.
    """
    digests = {result.key: result.content_digest for result in results}
    with transaction.atomic(using=database):
        others = _other_versions(claim.version, database)
        versions = [claim.version, *others]
        locked = IndexEntry.objects.using(database).filter(version__in=versions, key__in=list(digests))
        fields = ("pk", "key", "version_id", "state", "content_digest", "claim_token")
        rows = list(locked.order_by("key", "version_id").select_for_update().values_list(*fields))
        held = {
            key: pk for pk, key, version, _, _, token in rows if (version, token) == (claim.version.pk, claim.token)
        }
        same = Counter(
            key
            for _, key, version, state, digest, token in rows
            if version != claim.version.pk and (state, digest, token) == (State.INDEXED, digests[key], None)
        )
        done = [key for key in held if same[key] == len(others)]
        mark_ids = [pk for key in done for pk in claim.products[key].mark_ids]
        for pks in _slices(mark_ids, 1000):
            IndexMark.objects.using(database).filter(pk__in=pks).delete()
        IndexEntry.objects.using(database).filter(pk__in=[held[key] for key in done]).update(
            claim_token=None, lease_until=None, next_attempt_at=None, attempts=0
        )
    committed = set(done)
    return (
        [result for result in results if result.key in committed],
        [result for result in results if result.key in held and result.key not in committed],
    )


def _other_versions(version: IndexVersion, database: str) -> list[IndexVersion]:
    others = IndexVersion.objects.using(database).exclude(pk=version.pk).exclude(state=IndexVersion.State.DELETING)
    return list(others.order_by("pk"))


def _lock_claimed(claim: Claim, others: list[IndexVersion], keys: list[str], database: str) -> list[IndexEntry]:
    """Lock the products' entries in all these versions, and return those that the claim still holds.

    One statement locks them in one order: around a switch, drains of two versions finish the same products, and each
    also writes the other's entries.
    """
    versions = [claim.version, *others]
    locked = IndexEntry.objects.using(database).filter(version__in=versions, key__in=keys)
    locked = locked.order_by("key", "version_id").select_for_update()
    return [entry for entry in locked if entry.version_id == claim.version.pk and entry.claim_token == claim.token]


def _set_pending(versions: list[IndexVersion], keys: list[str], database: str) -> None:
    """Set these products to pending in these versions; this ends a build's claim on them."""
    entries = [IndexEntry(version=version, key=key) for key in sorted(keys) for version in versions]
    IndexEntry.objects.using(database).bulk_create(
        entries,
        update_conflicts=True,
        unique_fields=["version", "key"],
        update_fields=["state", "claim_token", "lease_until", "attempts", "next_attempt_at"],
    )


def _delete_pruned(versions: list[IndexVersion], database: str) -> None:
    """Delete the entries of versions that were pruned meanwhile."""
    known = set(IndexVersion.objects.using(database).values_list("pk", flat=True)) if versions else set()
    if gone := [version.pk for version in versions if version.pk not in known]:
        IndexEntry.objects.using(database).filter(version__in=gone).delete()


def _is_active(version: IndexVersion, database: str) -> bool:
    versions = IndexVersion.objects.using(database)
    return versions.filter(pk=version.pk, state=IndexVersion.State.ACTIVE).exists()


_ENTRY_FIELDS = [
    "state", "content_digest", "error", "indexed_at", "claim_token", "lease_until", "attempts", "next_attempt_at",
]  # fmt: skip


def _write_result(entry: IndexEntry, result: Result) -> None:
    settings = get_settings()
    entry.state, entry.content_digest, entry.error = (
        result.state,
        result.content_digest,
        clean_error_text(*result.errors),
    )
    entry.claim_token = entry.lease_until = entry.next_attempt_at = None
    if result.state in (State.INDEXED, State.PARTIAL):
        entry.indexed_at = Now()  # the database's clock, as for leases
    may_retry = result.may_retry and (result.is_transient or entry.attempts < settings.MAX_ATTEMPTS)
    if result.errors and may_retry:
        wait = min(settings.BACKOFF_SECONDS * 4 ** min(entry.attempts - 1, 10), MAX_BACKOFF_SECONDS)
        entry.next_attempt_at = Now() + datetime.timedelta(seconds=wait)
    elif not result.errors:
        entry.attempts = 0


def _write_embeddings(rows: list[Embedding], database: str) -> None:
    """Assign the next seq to each row and write the rows. `rows` may be empty; the lock is taken anyway.

    The FeedState row is locked from here to the commit, so seq follows commit order: a reader that has seen a seq
    never finds a new row with a smaller one.
    """
    get_singleton(FeedState, database)
    FeedState.objects.using(database).filter(pk=1).update(last_seq=F("last_seq") + len(rows))
    last = FeedState.objects.using(database).values_list("last_seq", flat=True).get(pk=1)
    for seq, row in enumerate(rows, start=last - len(rows) + 1):
        row.seq = seq
    if not rows:
        return
    updated: list[str] = [name for name in _EMBEDDING_FIELDS if name != "id"]
    Embedding.objects.using(database).bulk_create(
        rows, update_conflicts=True, unique_fields=["id"], update_fields=updated
    )


_EMBEDDING_FIELDS = [
    "product_key", "image_key", "image_identity", "digest", "is_main", "vector", "payload", "seq", "written_at",
]  # fmt: skip


def _slices(items: list[int], size: int) -> Iterator[list[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
