"""Which index version this process answers with.

That is the active one. After a switch, a process that searches goes on with the version it had until the new one's
encoder is loaded and its store filled, in a thread of its own: no shopper waits for either.
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

RETRY_SECONDS = 60  # after a warm-up that failed

_served: dict[int, int] = {}  # process id: primary key of the version
_warming: dict[tuple[int, int], float] = {}  # process id and version: when the thread was started


def serving_version() -> IndexVersion:
    """Return the version to search with, with the feed's state. Raises IndexEmpty, IndexOutdated."""
    active = versions.get_active()
    served = _served.get(os.getpid())
    if served == active.pk:
        return active
    old = versions.all_versions().filter(pk=served).first() if served is not None else None
    if old is None or is_warm(active):
        return _serve(active)
    _warm_aside(active)
    return old


def find_serving() -> IndexVersion | None:
    """Return the version that `serving_version` would, or None where it would raise. Changes nothing."""
    try:
        active = versions.get_active()
    except (IndexEmpty, IndexOutdated):
        return None
    served = _served.get(os.getpid())
    if served in (None, active.pk):
        return active
    return versions.all_versions().filter(pk=served).first() or active


def current_store(version: IndexVersion) -> VectorStore:
    """Return the version's store, brought up to date if it is this process's own; workers feed a shared one.

    version: with the feed's state, as `versions.all_versions` gives it.
    """
    store = store_for(version)
    if not store.is_shared:
        epoch, seq = getattr(version, "feed_epoch", None), getattr(version, "feed_seq", None)
        if epoch is None or seq is None or store.position() != Position(str(epoch), seq):
            feed.catch_up(version, store)
    return store


def is_warm(version: IndexVersion) -> bool:
    """Say whether this process can search the version at once. Loads nothing."""
    if not get_encoder(version.checkpoint).is_loaded:
        return False
    store = store_for(version)
    return store.is_shared or store.position() is not None


def warm_up(version: IndexVersion) -> None:
    """Load the version's encoder and fill its store. Raises what these raise."""
    encoder_for(version).warm_up()
    current_store(version)


def forget() -> None:
    """Begin anew: the next search takes the active version and waits for it."""
    _served.pop(os.getpid(), None)
    _warming.clear()


def _serve(version: IndexVersion) -> IndexVersion:
    if _served.get(os.getpid()) not in (None, version.pk):
        logger.info("This process now answers with index version %s (%s).", version.pk, version.checkpoint)
    _served[os.getpid()] = version.pk
    release_other_versions(version)
    return version


def _warm_aside(version: IndexVersion) -> None:
    """Warm the version up in a thread, unless one does so or has failed a moment ago."""
    key = (os.getpid(), version.pk)
    if time.monotonic() - _warming.get(key, -RETRY_SECONDS) < RETRY_SECONDS:
        return
    _warming[key] = time.monotonic()
    threading.Thread(target=_warm, args=(version,), name="visual_search-warm-up", daemon=True).start()


def _warm(version: IndexVersion) -> None:
    try:
        warm_up(version)
    except Exception:  # the shoppers are served with the version before; staff must see why
        logger.exception(
            "Index version %s can't be made ready in this process; it answers with the old one", version.pk
        )
    finally:
        connections.close_all()
