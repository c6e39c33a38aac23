"""The lease on a shared store: one process at a time feeds a version, even if others were paused or killed.

The position is written to the lease's row first, then to the store. Only the lease's holder writes the row. The
store's copy may also be written late, by a feeder that was paused, or come from an old snapshot.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.exceptions import LeaseLost, VersionSuperseded
from visual_search.models import FeedLease, IndexVersion
from visual_search.stores.base import Position

LEASE_SECONDS = 60  # renewed for each page (about a second); the next feeder after a killed one waits this long
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to feed a version's store. Each method raises LeaseLost if another process has taken the lease."""

    version: IndexVersion
    token: uuid.UUID
    database: str

    def renew(self) -> None:
        self._write()

    def record(self, position: Position) -> None:
        """Record the position; call it before writing the position to the store."""
        self._write(epoch=position.epoch, seq=position.seq)

    def begin(self, position: Position, *, must_compare: bool) -> None:
        """Record where a feed begins. must_compare: the store may hold points that the table does not know."""
        self.record(position)
        if must_compare:
            rows = FeedLease.objects.using(self.database).filter(version=self.version, token=self.token)
            rows.filter(must_compare=False).update(must_compare=True, compared_through=None)

    def record_comparison(self, compared_through: str | None) -> None:
        """Record where the comparison continues; None ends a round, after which nothing is left to compare."""
        is_over = {} if compared_through else {"must_compare": False}
        self._write(compared_through=compared_through, **is_over)

    def _write(self, **values: Any) -> None:
        rows = FeedLease.objects.using(self.database).filter(version=self.version, token=self.token)
        if not rows.update(lease_until=_lease_end(), **values):
            raise LeaseLost(
                f"Another process feeds the store of version {self.version.pk}: this one was paused for more than "
                f"{LEASE_SECONDS} s. Nothing is lost and there is nothing to do."
            )


@contextmanager
def hold(version: IndexVersion, *, wait_seconds: float = 0) -> Iterator[Lease | None]:
    """Hold the lease while the block runs. Yield None if another process keeps it for longer than `wait_seconds`."""
    lease = Lease(version, uuid.uuid4(), version._state.db or get_catalog().database)
    deadline = time.monotonic() + wait_seconds
    get_row(version)
    while not (is_taken := _take(lease)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if not is_taken:
        yield None
        return
    try:
        yield lease
    finally:
        with suppress(DatabaseError):  # the lease then expires
            FeedLease.objects.using(lease.database).filter(version=version, token=lease.token).update(
                token=None, lease_until=None
            )


def trusted_position(version: IndexVersion, position: Position | None) -> Position | None:
    """Return the store's position if it can be trusted, otherwise None.

    A position behind the row is right: a feeder was killed, or the store was restored from an old snapshot. One ahead
    of the row is not: the database was restored from a backup, or a paused feeder wrote it late.
    """
    row = get_row(version)
    if position is None or not row.epoch:  # the row records no position yet
        return position
    return position if row.epoch == position.epoch and position.seq <= row.seq else None


def get_row(version: IndexVersion) -> FeedLease:
    """Return the version's lease row; create it if it is missing. Raises VersionSuperseded if the version is gone."""
    database = version._state.db or get_catalog().database
    rows = FeedLease.objects.using(database)
    if (row := rows.filter(version=version).first()) is not None:
        return row
    deleted = VersionSuperseded(f"Index version {version.pk} was deleted.")
    if not IndexVersion.objects.using(database).filter(pk=version.pk).exists():  # SQLite checks the key at the commit
        raise deleted
    try:
        with transaction.atomic(using=database):
            return rows.get_or_create(version=version)[0]
    except IntegrityError as error:
        raise deleted from error


def _take(lease: Lease) -> bool:
    rows = FeedLease.objects.using(lease.database).filter(version=lease.version)
    # A lease that ends later than a new one would is none: the database's clock was set back.
    free = rows.filter(Q(lease_until=None) | Q(lease_until__lte=Now()) | Q(lease_until__gt=_lease_end()))
    return bool(free.update(token=lease.token, lease_until=_lease_end()))


def _lease_end() -> Any:
    return Now() + datetime.timedelta(seconds=LEASE_SECONDS)
