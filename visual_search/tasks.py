"""The tasks that the queue calls by name. Queued tasks outlive a deployment: never rename or move these functions."""

from __future__ import annotations

from visual_search.catalog import get_catalog
from visual_search.index import drain as drains
from visual_search.index import queue, sharing
from visual_search.index import sweep as sweeps


def drain() -> dict[str, int]:
    """Index dirty products for at most DRAIN_SECONDS, and request another drain if any are left.

    While more products wait than one claim takes, it requests drains for other workers too.
    """
    queue.record_drain_start()
    try:
        report = drains.drain(progress=sharing.share_backlog())
    except Exception as error:
        queue.record_drain_end(f"{type(error).__name__}: {error}")
        raise
    queue.record_drain_end()
    if report.is_unfinished:
        queue.enqueue_drain()
    return report.counts()


def sweep() -> dict[str, int]:
    """Find changes that sent no signal, and request a drain if marks are waiting."""
    if not sweeps.is_due(get_catalog().database):
        return {}
    report = sweeps.sweep()
    if report.pop("waiting"):
        queue.enqueue_drain()
    return report
