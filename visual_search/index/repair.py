"""Compare a shared store's points with the table, a slice of ids at a time, and repair what differs.

The feed can't detect points that a paused feeder wrote after they were deleted, nor points that a store lost while
it kept its position (an old snapshot, a damaged replica).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from django.db.models import QuerySet

from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.exceptions import Unavailable
from visual_search.index import feed, leases
from visual_search.index.leases import Lease
from visual_search.models import Embedding, IndexVersion
from visual_search.stores.base import Position, SharedStore, as_shared

logger = logging.getLogger(__name__)

SLICE = 1000  # ids compared at once: one request and one query
COMPARE_SECONDS = 1.0  # of each sweep while no difference is known
REPAIR_SECONDS = 45.0  # of a sweep that found a difference; far below the task's timeout


def repair_shared_store(version: IndexVersion) -> int:
    """Compare and repair some of the points, from where the last sweep ended. Return how many were wrong.

    It compares for longer if the numbers of points and rows differ or a wrong point was found. It compares nothing
    while the feed lags or another process feeds the store.
    """
    store = as_shared(store_for(version))
    if store is None:
        return 0
    repaired = 0
    try:
        with leases.hold(version) as lease:
            state, position = feed.read_feed_state(), leases.trusted_position(version, store.position())
            if lease is None or position != Position(str(state.epoch), state.last_seq):
                return 0
            for count in _repair_slices(version, store, lease, through=state.last_seq):
                repaired += count
    except Unavailable as error:
        logger.warning("The store could not be compared with the table: %s", error)
    if repaired:
        logger.warning("The store of version %s had %d wrong points; they were repaired", version.pk, repaired)
    return repaired


def _repair_slices(version: IndexVersion, store: SharedStore, lease: Lease, *, through: int) -> Iterator[int]:
    """Repair slice after slice until the last one or the time is up. Yield how many points of each were wrong."""
    began = time.monotonic()
    row = leases.get_row(version)
    start = str(row.compared_through) if row.compared_through else None
    # Counted once per round, not each minute: counting many millions of rows takes the database long.
    is_wrong = row.must_compare or (start is None and not _is_complete(version, store))
    while True:
        lease.renew()
        repaired, start = repair_slice(version, store, start, through=through)
        lease.record_comparison(start)
        yield repaired
        is_wrong = is_wrong or repaired > 0
        if start is None or time.monotonic() - began >= (REPAIR_SECONDS if is_wrong else COMPARE_SECONDS):
            return


def _is_complete(version: IndexVersion, store: SharedStore) -> bool:
    stored, wanted = store.count(), _live_rows(version).count()
    if stored != wanted:
        logger.warning("The store of version %s holds %d points, the table %d", version.pk, stored, wanted)
    return stored == wanted


def repair_slice(
    version: IndexVersion, store: SharedStore, start: str | None, *, through: int
) -> tuple[int, str | None]:
    """Repair the points from id `start` on. Return how many were wrong, and where the next slice starts.

    through: rows with a greater seq are left to the feed.
    """
    found, end = store.scroll_slice(start, limit=SLICE)  # read before the table, which can then only be newer
    rows = _live_rows(version).order_by("id")
    rows = rows.filter(id__gte=start) if start else rows
    rows = rows.filter(id__lt=end) if end else rows
    wanted = [(str(pk), seq) for pk, seq in rows.values_list("id", "seq")[: SLICE + 1]]
    if len(wanted) > SLICE:  # the store lacks so many points that the slice would grow without bound
        end = wanted.pop()[0]
    stored = {point: seq for point, seq in found if end is None or point < end}
    return _repair_points(version, store, stored, dict(wanted), through), end


def _repair_points(
    version: IndexVersion, store: SharedStore, stored: dict[str, int], wanted: dict[str, int], through: int
) -> int:
    extra = [point for point, seq in stored.items() if point not in wanted or seq > wanted[point]]
    missing = [point for point, seq in wanted.items() if seq <= through and stored.get(point) != seq]
    if deleted := [point for point in extra if stored[point] <= through]:
        store.delete_up_to(deleted, seq=through)
    if foreign := [point for point in extra if stored[point] > through]:
        # Of another history. Writes are conditional on the seq, so delete these before writing the table's rows.
        store.delete_up_to(foreign, seq=max(stored[point] for point in foreign))
    if missing:
        rows = list(_live_rows(version).filter(id__in=missing).order_by("seq"))
        if rows:
            feed.write_rows(version, store, rows)
    return len({*extra, *missing})


def _live_rows(version: IndexVersion) -> QuerySet[Embedding]:
    return Embedding.objects.using(get_catalog().database).filter(version=version, vector__isnull=False)
