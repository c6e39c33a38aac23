"""The only way points reach a store: rows of the Embedding table, in the order of their commits."""

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
from visual_search.models import Embedding, FeedState, IndexVersion, first_row
from visual_search.stores.base import Point, Position, SharedStore, VectorStore, as_shared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PAGE = 1000  # rows read and written at once: 2 to 4 MB of vectors
PROGRESS_SECONDS = 3.0  # how often a filling says in the log how far it is
_locks: WeakKeyDictionary[VectorStore, threading.Lock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


def catch_up(version: IndexVersion, store: VectorStore, *, wait_seconds: float = 0) -> int:
    """Bring the store up to date and return how many rows were fed.

    A store without a position, of another epoch, ahead of the table (a restored database) or so far behind
    that tombstones were pruned since, is emptied and fed from the start. While one thread of a process feeds its
    own store, the others query what is there; only an empty one makes them wait. A shared store is fed by one process
    at a time; wait_seconds: how long to wait for another one.
    """
    if shared := as_shared(store):
        return _catch_up_shared(version, shared, wait_seconds)
    state = first_state()
    position = store.position()
    if position is not None and position == Position(str(state.epoch), state.last_seq):
        return 0
    lock = _lock_of(store)
    if not lock.acquire(blocking=position is None):
        return 0
    try:
        return _feed(version, store, first_state(), store.position())
    finally:
        lock.release()


def feed_shared_store(version: IndexVersion) -> None:
    """Feed the store that all processes share; one that does not answer is fed by a later sweep."""
    store = as_shared(store_for(version))
    if store is None:
        return
    try:
        catch_up(version, store)
        point_alias(version, store)
    except Unavailable as error:
        logger.warning("The store could not be fed: %s", error)


def point_alias(version: IndexVersion, store: SharedStore) -> None:
    """Let the alias for outsiders, named as COLLECTION says, follow the active version."""
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
        state = first_state()
        if leases.trusted(version, store.position()) == Position(str(state.epoch), state.last_seq):
            return fed
        with leases.hold(version, wait_seconds=wait_seconds) as lease:
            if lease is None:
                return fed
            fed += _feed(version, store, state, leases.trusted(version, store.position()), lease)
        # Again after the lease was given back: who committed meanwhile may have found it taken and gone away.
        newer = first_state()
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
    said_at = started
    for rows in _pages(version, after=after, through=state.last_seq):
        if lease is not None:
            lease.renew()
        write_rows(version, store, rows, is_empty=must_start_over)
        fed += len(rows)
        # A private store that starts over has no position before it is full: other threads wait for it.
        if store.is_shared or not must_start_over:
            _set_position(store, Position(epoch, rows[-1].seq), lease)
        if must_start_over and time.perf_counter() - said_at >= PROGRESS_SECONDS:
            said_at = time.perf_counter()
            logger.info("Filling the store of version %s: %d of %d rows", version.pk, fed, _count(version, state))
    _set_position(store, Position(epoch, state.last_seq), lease)
    if must_start_over or fed >= PAGE:
        logger.info("Fed %d rows to the store of version %s in %.1f s", fed, version.pk, time.perf_counter() - started)
    return fed


def _start_over(store: VectorStore, epoch: str, lease: Lease | None, *, is_fresh: bool) -> None:
    if lease is not None:
        lease.record(Position(epoch, 0))  # first: no position that an older feeder writes later is believed
    if not is_fresh or store.count():  # a killed feeder leaves points without a position
        store.reset()


def _set_position(store: VectorStore, position: Position, lease: Lease | None) -> None:
    if lease is not None:
        lease.record(position)
    store.set_position(position)


def write_rows(version: IndexVersion, store: VectorStore, rows: list[Embedding], *, is_empty: bool = False) -> None:
    """Write one page of rows, read by one statement: tombstones delete, the others are upserted.

    A store that started empty has nothing to delete; later, deleting first frees ids that come back.
    """
    alive = [row for row in rows if row.vector is not None]
    gone = [str(row.id) for row in rows if row.vector is None]
    if gone and not is_empty:
        if shared := as_shared(store):  # this process may have been paused, and the ids come back since
            shared.delete_up_to(gone, seq=rows[-1].seq)
        else:
            store.delete(gone)
    if alive:
        store.upsert(points_of(alive, version.dim))


def _count(version: IndexVersion, state: FeedState) -> int:
    return Embedding.objects.using(get_catalog().database).filter(version=version, seq__lte=state.last_seq).count()


def _pages(version: IndexVersion, *, after: int, through: int) -> Iterator[list[Embedding]]:
    rows = Embedding.objects.using(get_catalog().database).filter(version=version, seq__lte=through).order_by("seq")
    while page := list(rows.filter(seq__gt=after)[:PAGE]):
        yield page
        after = page[-1].seq


def points_of(rows: list[Embedding], dim: int) -> list[Point]:
    """Return the rows as points with unit float32 vectors."""
    vectors = vectors_of(rows, dim)
    return [
        Point(str(row.id), vector, row.product_key, row.image_key, row.is_main, row.seq, row.payload)
        for row, vector in zip(rows, vectors, strict=True)
    ]


def vectors_of(rows: list[Embedding], dim: int) -> NDArray[np.float32]:
    """Return float32 (n, dim), unit length: float16 loses a little of it."""
    import numpy as np

    joined = b"".join(bytes(row.vector or b"") for row in rows)
    vectors: NDArray[np.float32] = np.frombuffer(joined, dtype="<f2").reshape(len(rows), dim).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def first_state() -> FeedState:
    """Return the feed's state: one look-up by primary key."""
    database = get_catalog().database
    state = FeedState.objects.using(database).filter(pk=1).first()
    return state or first_row(FeedState, database)


def _lock_of(store: VectorStore) -> threading.Lock:
    with _locks_lock:
        return _locks.setdefault(store, threading.Lock())


def _forget_locks() -> None:
    """In a forked child: a lock that another thread held at the fork would never be released here."""
    global _locks_lock
    _locks_lock = threading.Lock()
    _locks.clear()


os.register_at_fork(after_in_child=_forget_locks)
