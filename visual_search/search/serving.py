"""The serving version: the index version that this process searches.

It is the active version. After a switch, a process that already serves searches keeps its old version while a thread
loads the new version's encoder and fills its store, so no shopper waits for either.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import connections

from visual_search.components import (
    encoder_for,
    get_encoder,
    hold_store,
    new_store,
    release_other_versions,
    replace_store,
    store_for,
)
from visual_search.exceptions import IndexEmpty, IndexFilling, IndexOutdated
from visual_search.index import feed, queue, versions
from visual_search.models import IndexVersion
from visual_search.stores.base import Position, VectorStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60  # after a failed warm-up
FEED_SECONDS = 0.03  # of a search, which writes one more page of 20 ms then
FILL_WAIT_SECONDS = 5.0  # of a search, for a store that was never filled; as long as for the encoder


@dataclass(slots=True, eq=False)
class Refresh:
    """A thread that brings a store up to date. error: why it failed."""

    is_over: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


_served: dict[int, int] = {}  # process id → primary key of the version
_warming: dict[tuple[int, int], float] = {}  # (process id, version) → start time of the thread
_refreshing: dict[tuple[int, int], Refresh] = {}  # (process id, version) → what a thread is doing for it
_refreshing_lock = threading.Lock()


def serving_version() -> IndexVersion:
    """Return the version to search, with the feed state. Raises IndexEmpty, IndexOutdated."""
    active = versions.get_active()
    served = _served.get(os.getpid())
    if served == active.pk:
        return active
    old = versions.all_versions().filter(pk=served).first() if served is not None else None
    if old is None or is_warm(active):
        return _start_serving(active)
    _warm_up_in_thread(active)
    return old


@contextmanager
def hold_version(version: IndexVersion | None = None) -> Iterator[tuple[IndexVersion, VectorStore]]:
    """Hold a version (the serving one by default) with its store and encoder while the block runs.

    A switch in another thread replaces them for later searches and closes them when this one has ended.
    Raises IndexEmpty, IndexOutdated.
    """
    is_served = version is None
    while True:
        held = version or serving_version()
        with hold_store(held) as store:
            # Another thread may have switched between the look-up and the hold.
            if not is_served or _served.get(os.getpid()) == held.pk:
                yield held, store
                return


def find_serving_version() -> IndexVersion | None:
    """Return what `serving_version` would return, or None where it would raise. Changes nothing."""
    try:
        active = versions.get_active()
    except (IndexEmpty, IndexOutdated):
        return None
    served = _served.get(os.getpid())
    if served in (None, active.pk):
        return active
    return versions.all_versions().filter(pk=served).first() or active


def bring_up_to_date(version: IndexVersion, store: VectorStore) -> None:
    """Bring an embedded store up to date for a search; workers feed a shared one.

    A search feeds for FEED_SECONDS at most and then uses what is there; a thread goes on. It waits only for a store
    that was never filled.
    version: with the feed state, as `versions.all_versions` returns it.
    Raises IndexFilling, or why the store could not be filled.
    """
    if store.is_shared or store.position() == _fed_through(version):
        return
    if queue.runs_inline():
        feed.catch_up(version, store)
        return
    state = feed.read_feed_state()
    if not feed.must_start_over(state, store.position()):
        feed.catch_up(version, store, seconds=FEED_SECONDS)
        position = store.position()
        if position is not None and position.seq >= state.last_seq:
            return
    refresh = _refresh_in_thread(version)
    if store.position() is not None:
        return
    if not refresh.is_over.wait(FILL_WAIT_SECONDS):
        raise IndexFilling(f"The store of index version {version.pk} is being filled in this process.")
    if refresh.error is not None:
        raise refresh.error


def check_filled(store: VectorStore) -> None:
    """Raise IndexFilling if the store was found damaged and closed: its answer comes from an empty one."""
    if not store.is_shared and store.position() is None:
        raise IndexFilling("A damaged store was closed; the next search fills another one.")


def _fed_through(version: IndexVersion) -> Position | None:
    epoch, seq = getattr(version, "feed_epoch", None), getattr(version, "feed_seq", None)
    return None if epoch is None or seq is None else Position(str(epoch), seq)


def _refresh_in_thread(version: IndexVersion) -> Refresh:
    """Bring this process's store up to date in a thread, one at a time."""
    key = (os.getpid(), version.pk)
    with _refreshing_lock:
        if key not in _refreshing:
            _refreshing[key] = Refresh()
            arguments = (version, _refreshing[key])
            threading.Thread(target=_refresh, args=arguments, name="visual_search-refresh", daemon=True).start()
        return _refreshing[key]


def _refresh(version: IndexVersion, refresh: Refresh) -> None:
    try:
        store = store_for(version)
        if store.position() is not None and feed.must_start_over(feed.read_feed_state(), store.position()):
            # The old store answers until the new one is full.
            store = new_store(version)
            feed.catch_up(version, store)
            replace_store(version, store)
        else:
            feed.catch_up(version, store)
    except Exception as error:  # the searches that wait raise it; the next one tries again
        logger.exception("The store of index version %s can't be brought up to date in this process", version.pk)
        refresh.error = error
    finally:
        with _refreshing_lock:
            _refreshing.pop((os.getpid(), version.pk), None)
        refresh.is_over.set()
        connections.close_all()


def _replace_lock() -> None:
    """Replace the lock in a forked child: another thread may have held it at the fork."""
    global _refreshing_lock
    _refreshing_lock = threading.Lock()


os.register_at_fork(after_in_child=_replace_lock)


def is_warm(version: IndexVersion) -> bool:
    """Return whether this process can search the version at once. Loads nothing."""
    if not get_encoder(version.checkpoint).is_loaded:
        return False
    store = store_for(version)
    return store.is_shared or store.position() is not None


def warm_up(version: IndexVersion) -> None:
    """Load the version's encoder and fill its store. Passes their errors on."""
    encoder_for(version).warm_up()
    store = store_for(version)
    if not store.is_shared:
        feed.catch_up(version, store)


def reset() -> None:
    """Forget the serving version: the next search uses the active version and waits until it is loaded."""
    _served.pop(os.getpid(), None)
    _warming.clear()


def _start_serving(version: IndexVersion) -> IndexVersion:
    if _served.get(os.getpid()) not in (None, version.pk):
        logger.info("This process now searches index version %s (%s).", version.pk, version.checkpoint)
    _served[os.getpid()] = version.pk
    release_other_versions(version)
    return version


def _warm_up_in_thread(version: IndexVersion) -> None:
    """Warm the version up in a thread, unless one was started in the last RETRY_SECONDS."""
    key = (os.getpid(), version.pk)
    if time.monotonic() - _warming.get(key, -RETRY_SECONDS) < RETRY_SECONDS:
        return
    _warming[key] = time.monotonic()
    threading.Thread(target=_run_warm_up, args=(version,), name="visual_search-warm-up", daemon=True).start()


def _run_warm_up(version: IndexVersion) -> None:
    try:
        warm_up(version)
    except Exception:  # shoppers still get the old version; staff must see why
        logger.exception("This process can't load index version %s; it still answers with the old one.", version.pk)
    finally:
        connections.close_all()
