"""What the queue calls by name. Queued tasks outlive a deployment: never rename or move these functions."""

from __future__ import annotations

from visual_search.index import drain as drains
from visual_search.index import queue, sharing
from visual_search.index import sweep as sweeps


def drain() -> dict[str, int]:
    """Embed what is dirty, for at most DRAIN_SECONDS; ask for another drain if something is left.

    While more waits than this worker takes at once, others are called to it.
    """
    queue.drain_started()
    try:
        report = drains.drain(progress=sharing.share_backlog())
    except Exception as error:
        queue.drain_ended(f"{type(error).__name__}: {error}")
        raise
    queue.drain_ended()
    if report.is_unfinished:
        queue.enqueue_drain()
    return report.counts()


def sweep() -> dict[str, int]:
    """Find what no signal told, and ask for a drain if anything waits."""
    report = sweeps.sweep()
    if report.pop("waiting"):
        queue.enqueue_drain()
    return report
