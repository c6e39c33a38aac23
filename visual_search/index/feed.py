"""Feed stores: write rows of the Embedding table to them as points, in commit order. No other code writes points."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
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
PROGRESS_SECONDS = 3.0  # how often the progress of filling a store is logged
_locks: WeakKeyDictionary[VectorStore, threading.Lock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def catch_up(version: IndexVersion, store: VectorStore, *, wait_seconds: float = 0) -> int:
    """Bring the store up to date and return how many rows were fed.

    A store is emptied and fed from the start if it has no position, has another epoch, is ahead of the table (a
    restored database), or is behind pruned tombstones. While one thread feeds the process's own store, other threads
    query its current points; they wait only if it has no position. One process at a time feeds a shared store;
    wait_seconds: how long to wait for another one.
    """
    if shared := as_shared(store):
        return _catch_up_shared(version, shared, wait_seconds)
    state = read_feed_state()
    position = store.position()
    if position is not None and position == Position(str(state.epoch), state.last_seq):
        return 0
    lock = _lock_for(store)
    if not lock.acquire(blocking=position is None):
        return 0
    try:
        return _feed(version, store, read_feed_state(), store.position())
    finally:
        lock.release()


def feed_shared_store(version: IndexVersion) -> None:
    """Feed the shared store, if there is one. If it does not answer, a later sweep feeds it."""
    store = as_shared(store_for(version))
    if store is None:
        return
    try:
        catch_up(version, store)
        point_alias(version, store)
    except Unavailable as error:
        logger.warning("The store could not be fed: %s", error)


def point_alias(version: IndexVersion, store: SharedStore) -> None:
    """Point the alias for external clients, named by COLLECTION, at the active version."""
    active = find_active()
    if active is None or active.pk != version.pk:
        return
    try:
        store.point_alias(get_settings().COLLECTION)
    except Unavailable as error:  # searches don't need it
        logger.warning("%s", error)


def _catch_up_shared(version: IndexVersion, store: SharedStore, wait_seconds: float) -> int:
    fed = 0
    while True:
        state = read_feed_state()
        if leases.trusted_position(version, store.position()) == Position(str(state.epoch), state.last_seq):
            return fed
        with leases.hold(version, wait_seconds=wait_seconds) as lease:
            if lease is None:
                return fed
            fed += _feed(version, store, state, leases.trusted_position(version, store.position()), lease)
        # Check again after the lease is released: a worker that committed meanwhile may have found it taken and left.
        newer = read_feed_state()
        if (newer.epoch, newer.last_seq) == (state.epoch, state.last_seq):
            return fed


def _feed(
    version: IndexVersion, store: VectorStore, state: FeedState, position: Position | None, lease: Lease | None = None
) -> int:
    started = time.perf_counter()
    epoch = str(state.epoch)
    must_start_over = (
        position is None or position.epoch != epoch or not state.pruned_through <= position.seq <= state.last_seq
    )
    store.ensure()
    if must_start_over:
        _start_over(store, epoch, lease, is_fresh=position is None)
    after = 0 if must_start_over or position is None else position.seq
    fed = 0
    logged_at = started
    for rows in _pages(version, after=after, through=state.last_seq):
        if lease is not None:
            lease.renew()
        write_rows(version, store, rows, is_empty=must_start_over)
        fed += len(rows)
        # A private store that starts over gets no position until it is full: other threads wait for it.
        if store.is_shared or not must_start_over:
            _set_position(store, Position(epoch, rows[-1].seq), lease)
        if must_start_over and time.perf_counter() - logged_at >= PROGRESS_SECONDS:
            logged_at = time.perf_counter()
            logger.info("Filling the store of version %s: %d of %d rows", version.pk, fed, _count(version, state))
    _set_position(store, Position(epoch, state.last_seq), lease)
    if must_start_over or fed >= PAGE:
        logger.info("Fed %d rows to the store of version %s in %.1f s", fed, version.pk, time.perf_counter() - started)
    return fed


def _start_over(store: VectorStore, epoch: str, lease: Lease | None, *, is_fresh: bool) -> None:
    if lease is not None:
        lease.record(Position(epoch, 0))  # first: a position written later by an older feeder is then not trusted
    if not is_fresh or store.count():  # a killed feeder leaves points without a position
        store.reset()


def _set_position(store: VectorStore, position: Position, lease: Lease | None) -> None:
    if lease is not None:
        lease.record(position)
    store.set_position(position)


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


def _pages(version: IndexVersion, *, after: int, through: int) -> Iterator[list[Embedding]]:
    rows = Embedding.objects.using(get_catalog().database).filter(version=version, seq__lte=through).order_by("seq")
    while page := list(rows.filter(seq__gt=after)[:PAGE]):
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
