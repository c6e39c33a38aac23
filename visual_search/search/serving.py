"""The serving version: the index version that this process searches.

It is the active version. After a switch, a process that already serves searches keeps its old version while a thread
loads the new version's encoder and fills its store, so no shopper waits for either.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from django.db import connections

from visual_search.components import encoder_for, get_encoder, release_other_versions, store_for
from visual_search.exceptions import IndexEmpty, IndexOutdated
from visual_search.index import feed, versions
from visual_search.models import IndexVersion
from visual_search.stores.base import Position, VectorStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60  # after a failed warm-up

_served: dict[int, int] = {}  # process id → primary key of the version
_warming: dict[tuple[int, int], float] = {}  # (process id, version) → start time of the thread


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


def current_store(version: IndexVersion) -> VectorStore:
    """Return the version's store. Brings an embedded store up to date first; workers feed a shared one.

    version: with the feed state, as `versions.all_versions` returns it.
    """
    store = store_for(version)
    if not store.is_shared:
        epoch, seq = getattr(version, "feed_epoch", None), getattr(version, "feed_seq", None)
        if epoch is None or seq is None or store.position() != Position(str(epoch), seq):
            feed.catch_up(version, store)
    return store


def is_warm(version: IndexVersion) -> bool:
    """Return whether this process can search the version at once. Loads nothing."""
    if not get_encoder(version.checkpoint).is_loaded:
        return False
    store = store_for(version)
    return store.is_shared or store.position() is not None


def warm_up(version: IndexVersion) -> None:
    """Load the version's encoder and fill its store. Passes their errors on."""
    encoder_for(version).warm_up()
    current_store(version)


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
