"""Feed stores: write rows of the Embedding table to them as points, in commit order. No other code writes points."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.conf import get_settings
from visual_search.exceptions import Unavailable
from visual_search.index import leases
from visual_search.index.leases import Lease
from visual_search.index.versions import find_active
from visual_search.models import Embedding, FeedState, IndexVersion, get_singleton
from visual_search.stores.base import Point, Position, SharedStore, VectorStore, as_shared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PAGE = 1000  # rows read and written at once: 2 to 4 MB of vectors
SMALL_PAGE = 100  # where a shopper waits: about 20 ms
PROGRESS_SECONDS = 3.0  # how often the progress of filling a store is logged
_locks: WeakKeyDictionary[VectorStore, threading.Lock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def catch_up(version: IndexVersion, store: VectorStore, *, wait_seconds: float = 0, seconds: float = math.inf) -> int:
    """Bring the store up to date and return how many rows were fed.

    wait_seconds: how long to wait for another process that feeds the same shared store. seconds: after this time the
    rest is left to the next call, which continues there.
    While one thread feeds the process's own store, other threads query its current points; they wait only if it has
    no position.
    """
    deadline = time.monotonic() + seconds
    if shared := as_shared(store):
        return _catch_up_shared(version, shared, wait_seconds, deadline)
    state = read_feed_state()
    position = store.position()
    if position == _end(state):
        return 0
    lock = _lock_for(store)
    if not lock.acquire(blocking=position is None):
        return 0
    try:
        return _feed_private(version, store, read_feed_state(), store.position(), deadline)
    finally:
        lock.release()


def feed_shared_store(version: IndexVersion, *, seconds: float = math.inf) -> bool:
    """Feed the shared store, if there is one. Return whether rows are left that this process could feed.

    If the store does not answer, a later sweep feeds it.
    """
    store = as_shared(store_for(version))
    if store is None:
        return False
    started = time.monotonic()
    try:
        catch_up(version, store, seconds=seconds)
        point_alias(version, store)
    except Unavailable as error:
        logger.warning("The store could not be fed: %s", error)
        return False
    return time.monotonic() - started >= seconds


def point_alias(version: IndexVersion, store: SharedStore) -> None:
    """Point the alias for external clients, named by COLLECTION, at the active version."""
    active = find_active()
    if active is None or active.pk != version.pk:
        return
    try:
        store.point_alias(get_settings().COLLECTION)
    except Unavailable as error:  # searches don't need it
        logger.warning("%s", error)


def must_start_over(state: FeedState, position: Position | None) -> bool:
    """Return whether a private store can't be brought up to date row by row.

    It has no position, has another epoch, is ahead of the table (a restored database), or is behind pruned tombstones.
    """
    if position is None or position.epoch != str(state.epoch):
        return True
    return not state.pruned_through <= position.seq <= state.last_seq


def _feed_private(
    version: IndexVersion, store: VectorStore, state: FeedState, position: Position | None, deadline: float
) -> int:
    epoch = str(state.epoch)
    is_filling = must_start_over(state, position)
    store.ensure()
    if is_filling and (position is not None or store.count()):
        store.reset()
    after = 0 if is_filling or position is None else position.seq
    # A store that starts over gets no position until it is full: other threads wait for it.
    size = PAGE if deadline == math.inf else SMALL_PAGE
    with _Progress(version, state, is_filling=is_filling) as progress:
        for rows in _pages(version, after=after, through=state.last_seq, size=size):
            write_rows(version, store, rows, is_empty=is_filling)
            progress.add(len(rows))
            if not is_filling:
                store.set_position(Position(epoch, rows[-1].seq))
                if time.monotonic() >= deadline:
                    return progress.fed
        store.set_position(_end(state))
    return progress.fed


def _catch_up_shared(version: IndexVersion, store: SharedStore, wait_seconds: float, deadline: float) -> int:
    fed = 0
    while True:
        state = read_feed_state()
        if leases.trusted_position(version, store.position()) == _end(state):
            return fed
        with leases.hold(version, wait_seconds=wait_seconds) as lease:
            if lease is None:
                return fed
            # Read again under the lease: who held it before may have fed rows that are newer than what we knew.
            state = read_feed_state()
            fed += _feed_shared(version, store, state, lease, deadline)
        # Check again after the lease is released: a worker that committed meanwhile may have found it taken and left.
        newer = read_feed_state()
        if (newer.epoch, newer.last_seq) == (state.epoch, state.last_seq) or time.monotonic() >= deadline:
            return fed


def _feed_shared(version: IndexVersion, store: SharedStore, state: FeedState, lease: Lease, deadline: float) -> int:
    """Feed under the lease. A store that answers is never emptied: rows are written over what it holds."""
    store.ensure()
    position = store.position()
    begin, must_compare = _resume(version, store, state, position)
    if position != begin or must_compare:
        lease.begin(begin, must_compare=must_compare)
    with _Progress(version, state, is_filling=begin.seq == 0) as progress:
        for rows in _pages(version, after=begin.seq, through=state.last_seq):
            lease.renew()
            write_rows(version, store, rows)
            progress.add(len(rows))
            _set_position(store, Position(begin.epoch, rows[-1].seq), lease)
            if time.monotonic() >= deadline:
                return progress.fed
        _set_position(store, _end(state), lease)
    return progress.fed


def _resume(
    version: IndexVersion, store: SharedStore, state: FeedState, position: Position | None
) -> tuple[Position, bool]:
    """Return from where to feed, and whether the store may hold points that the table does not know.

    Those are points of another history (a restored database), of another epoch, or of tombstones that were pruned
    before the store reached them. The sweep compares all points with the table and removes them (repair.py).
    """
    epoch = str(state.epoch)
    row = leases.get_row(version)
    recorded = row.seq if row.epoch == epoch else None if row.epoch else state.last_seq
    if position is None or position.epoch != epoch or recorded is None:
        return Position(epoch, 0), store.count() > 0
    through = min(position.seq, recorded, state.last_seq)
    return Position(epoch, through), position.seq > through or through < state.pruned_through


def _set_position(store: VectorStore, position: Position, lease: Lease) -> None:
    lease.record(position)
    store.set_position(position)


def _end(state: FeedState) -> Position:
    return Position(str(state.epoch), state.last_seq)


class _Progress:
    """Log how far a long feed is, and how long it took."""

    def __init__(self, version: IndexVersion, state: FeedState, *, is_filling: bool) -> None:
        self.version, self.state, self.is_filling = version, state, is_filling
        self.fed = 0

    def __enter__(self) -> Self:
        self.started = self.logged_at = time.monotonic()
        return self

    def add(self, rows: int) -> None:
        self.fed += rows
        if self.is_filling and time.monotonic() - self.logged_at >= PROGRESS_SECONDS:
            self.logged_at = time.monotonic()
            count = _count(self.version, self.state)
            logger.info("Filling the store of version %s: %d of %d rows", self.version.pk, self.fed, count)

    def __exit__(self, *error: object) -> None:
        if self.is_filling or self.fed >= PAGE:
            seconds = time.monotonic() - self.started
            logger.info("Fed %d rows to the store of version %s in %.1f s", self.fed, self.version.pk, seconds)


def write_rows(version: IndexVersion, store: VectorStore, rows: list[Embedding], *, is_empty: bool = False) -> None:
    """Write one page of rows, read by one statement: delete the points of tombstones, upsert the others.

    A store that started empty has nothing to delete. Otherwise deletions come first, to free ids that are used again.
    """
    alive = [row for row in rows if row.vector is not None]
    deleted = [str(row.id) for row in rows if row.vector is None]
    if deleted and not is_empty:
        if shared := as_shared(store):  # this process may have been paused, and the ids used again since
            shared.delete_up_to(deleted, seq=rows[-1].seq)
        else:
            store.delete(deleted)
    if alive:
        store.upsert(rows_to_points(alive, version.dim))


def _count(version: IndexVersion, state: FeedState) -> int:
    return Embedding.objects.using(get_catalog().database).filter(version=version, seq__lte=state.last_seq).count()


def _pages(version: IndexVersion, *, after: int, through: int, size: int | None = None) -> Iterator[list[Embedding]]:
    rows = Embedding.objects.using(get_catalog().database).filter(version=version, seq__lte=through).order_by("seq")
    while page := list(rows.filter(seq__gt=after)[: size or PAGE]):
        yield page
        after = page[-1].seq


def rows_to_points(rows: list[Embedding], dim: int) -> list[Point]:
    """Return the rows as points with unit-length float32 vectors."""
    vectors = rows_to_vectors(rows, dim)
    return [
        Point(str(row.id), vector, row.product_key, row.image_key, row.is_main, row.seq, row.payload)
        for row, vector in zip(rows, vectors, strict=True)
    ]


def rows_to_vectors(rows: list[Embedding], dim: int) -> NDArray[np.float32]:
    """Return the rows' vectors: float32 (n, dim), normalised again because float16 rounds them."""
    import numpy as np

    joined = b"".join(bytes(row.vector or b"") for row in rows)
    vectors: NDArray[np.float32] = np.frombuffer(joined, dtype="<f2").reshape(len(rows), dim).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def read_feed_state() -> FeedState:
    """Return the feed's state: one lookup by primary key."""
    database = get_catalog().database
    state = FeedState.objects.using(database).filter(pk=1).first()
    return state or get_singleton(FeedState, database)


def _lock_for(store: VectorStore) -> threading.Lock:
    with _locks_lock:
        return _locks.setdefault(store, threading.Lock())


def _replace_locks() -> None:
    """Replace the locks in a forked child: one that another thread held at the fork would never be released."""
    global _locks_lock
    _locks_lock = threading.Lock()
    _locks.clear()


os.register_at_fork(after_in_child=_replace_locks)
