"""The lease on a store that all processes share: one feeder a version at a time, whatever was paused or killed.

The position stands in the store and, written first, in the lease's row. The row is written only by who holds the lease;
the store's copy may also be written late, by a feeder that was paused, or come back with an old snapshot.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError
from django.db.models import Q
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.exceptions import LeaseLost
from visual_search.models import FeedLease, IndexVersion
from visual_search.stores.base import Position

LEASE_SECONDS = 60  # renewed each page, which takes about a second; who follows a killed feeder waits this long
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to feed a version's store. Each call raises LeaseLost if another process has it by now."""

    version: IndexVersion
    token: uuid.UUID
    database: str

    def renew(self) -> None:
        self._write()

    def record(self, position: Position) -> None:
        """Write down the position before it is written into the store."""
        self._write(epoch=position.epoch, seq=position.seq)

    def record_comparison(self, compared_through: str | None) -> None:
        self._write(compared_through=compared_through)

    def _write(self, **values: Any) -> None:
        rows = FeedLease.objects.using(self.database).filter(version=self.version, token=self.token)
        if not rows.update(lease_until=_lease_end(), **values):
            raise LeaseLost(
                f"Another process feeds the store of version {self.version.pk}: this one was paused for more than "
                f"{LEASE_SECONDS} s. Nothing is lost and nothing has to be done."
            )


@contextmanager
def hold(version: IndexVersion, *, wait_seconds: float = 0) -> Iterator[Lease | None]:
    """Take the lease for as long as the block runs; None if another process has it and keeps it."""
    lease = Lease(version, uuid.uuid4(), version._state.db or get_catalog().database)
    deadline = time.monotonic() + wait_seconds
    row_of(version)
    while not (is_taken := _take(lease)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if not is_taken:
        yield None
        return
    try:
        yield lease
    finally:
        with suppress(DatabaseError):  # then it ends by itself
            FeedLease.objects.using(lease.database).filter(version=version, token=lease.token).update(
                token=None, lease_until=None
            )


def trusted(version: IndexVersion, position: Position | None) -> Position | None:
    """Return the store's position if what it says can be relied on, otherwise None: it must be fed from the start.

    Behind the row it is right: a feeder was killed, or the store came back from an old snapshot. Ahead of the row it is
    not: the database came back from a backup, or a paused feeder wrote it after another one had begun anew.
    """
    row = row_of(version)
    if position is None or not row.epoch:  # fed before there was a lease
        return position
    return position if row.epoch == position.epoch and position.seq <= row.seq else None


def row_of(version: IndexVersion) -> FeedLease:
    """Return the version's row, made where it is missing."""
    database = version._state.db or get_catalog().database
    return FeedLease.objects.using(database).get_or_create(version=version)[0]


def _take(lease: Lease) -> bool:
    rows = FeedLease.objects.using(lease.database).filter(version=lease.version)
    free = rows.filter(Q(lease_until=None) | Q(lease_until__lte=Now()))
    return bool(free.update(token=lease.token, lease_until=_lease_end()))


def _lease_end() -> Any:
    return Now() + datetime.timedelta(seconds=LEASE_SECONDS)
