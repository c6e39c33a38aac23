"""The points of a shared store against the table, a slice of ids at a time.

The feed alone can't see everything: points that a paused feeder brought after they were deleted, and points that
a store lost while it kept its position (an old snapshot, a damaged replica).
"""

from __future__ import annotations

import logging
import time

from django.db.models import QuerySet

from visual_search import feed, leases
from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.exceptions import Unavailable
from visual_search.leases import Lease
from visual_search.models import Embedding, IndexVersion
from visual_search.stores.base import Position, SharedStore, as_shared

logger = logging.getLogger(__name__)

SLICE = 1000  # ids compared at once: one request and one query
COMPARE_SECONDS = 1.0  # of each minute's sweep while nothing is known to be wrong
REPAIR_SECONDS = 45.0  # while the counts differ; far below the time that a task may take


def repair_shared_store(version: IndexVersion) -> int:
    """Compare some of the points, going on where the last sweep ended. Return how many were wrong.

    More is compared at once while store and table differ in number. Nothing is compared while the feed lags or
    another process feeds.
    """
    store = as_shared(store_for(version))
    if store is None:
        return 0
    try:
        with leases.hold(version) as lease:
            state, position = feed.first_state(), leases.trusted(version, store.position())
            if lease is None or position != Position(str(state.epoch), state.last_seq):
                return 0
            seconds = COMPARE_SECONDS if _is_complete(version, store) else REPAIR_SECONDS
            repaired = _repair(version, store, lease, through=state.last_seq, seconds=seconds)
    except Unavailable as error:
        logger.warning("The store could not be compared with the table: %s", error)
        return 0
    if repaired:
        logger.warning("The store of version %s had %d wrong points; they were mended", version.pk, repaired)
    return repaired


def _is_complete(version: IndexVersion, store: SharedStore) -> bool:
    stored, wanted = store.count(), _living(version).count()
    if stored != wanted:
        logger.warning("The store of version %s holds %d points, the table %d", version.pk, stored, wanted)
    return stored == wanted


def _repair(version: IndexVersion, store: SharedStore, lease: Lease, *, through: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    compared_through = leases.row_of(version).compared_through
    start = str(compared_through) if compared_through else None
    repaired = 0
    while True:
        lease.renew()
        some, start = repair_slice(version, store, start, through=through)
        repaired += some
        lease.record_comparison(start)
        if start is None or time.monotonic() >= deadline:
            return repaired


def repair_slice(
    version: IndexVersion, store: SharedStore, start: str | None, *, through: int
) -> tuple[int, str | None]:
    """Mend the points from id `start` on. Return how many were wrong, and where the next slice starts.

    through: rows above it are left to the feed.
    """
    found, end = store.scroll_slice(start, limit=SLICE)  # before the table, which can then only be newer
    rows = _living(version).order_by("id")
    rows = rows.filter(id__gte=start) if start else rows
    rows = rows.filter(id__lt=end) if end else rows
    wanted = [(str(pk), seq) for pk, seq in rows.values_list("id", "seq")[: SLICE + 1]]
    if len(wanted) > SLICE:  # the store lacks so many that the slice would grow without bound
        end = wanted.pop()[0]
    stored = {point: seq for point, seq in found if end is None or point < end}
    return _mend(version, store, stored, dict(wanted), through), end


def _mend(
    version: IndexVersion, store: SharedStore, stored: dict[str, int], wanted: dict[str, int], through: int
) -> int:
    # Of another history if newer than the table: writes are conditional on the seq, so it has to go first.
    ghosts = [point for point, seq in stored.items() if point not in wanted or seq > wanted[point]]
    lacking = [point for point, seq in wanted.items() if seq <= through and stored.get(point) != seq]
    if ghosts:
        store.delete_through(ghosts, seq=max(stored[point] for point in ghosts))
    if lacking:
        rows = list(_living(version).filter(id__in=lacking).order_by("seq"))
        if rows:
            feed.write_rows(version, store, rows)
    return len({*ghosts, *lacking})


def _living(version: IndexVersion) -> QuerySet[Embedding]:
    return Embedding.objects.using(get_catalog().database).filter(version=version, vector__isnull=False)
