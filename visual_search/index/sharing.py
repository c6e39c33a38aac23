"""Share a backlog among several workers: a drain that sees more than one claim takes requests another drain.

A bulk import requests one drain, and the queue gives it to one worker. Each running drain therefore checks the backlog
at intervals, and requests another drain while more products are dirty than one claim takes and no task waits in the
queue. So the other workers join one by one, and at most one request too many waits, however many workers there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from visual_search.catalog import get_catalog
from visual_search.index import claims, queue, versions
from visual_search.index.drain import claim_size
from visual_search.index.finish import Result

CHECK_SECONDS = 1  # between checks: a claim takes a second or more, a check two queries of a few rows


def share_backlog() -> Callable[[Result], None]:
    """Return a callback for a drain to call with each committed result; it requests another drain if needed.

    It checks nothing before the first result: a drain that fails at once (no checkpoint, no database) would only
    request others that fail too.
    """
    checked_at = float("-inf")

    def on_result(result: Result) -> None:
        nonlocal checked_at
        if time.monotonic() - checked_at >= CHECK_SECONDS:
            checked_at = time.monotonic()
            if has_backlog():
                queue.enqueue_extra_drain()

    return on_result


def has_backlog() -> bool:
    """Return whether more unclaimed products wait than one claim takes, or more marks than one claim reads."""
    products = claim_size()
    max_marks = products * claims.MARKS_PER_PRODUCT
    marks = claims.unclaimed_marks(versions.find_active(), get_catalog().database).order_by("pk")
    keys = list(marks.values_list("key", flat=True)[: max_marks + 1])
    return len(keys) > max_marks or len(set(keys)) > products
