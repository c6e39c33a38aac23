"""Several workers on one backlog: a drain that sees more than it takes at once asks for another beside it.

A bulk import asks for one drain, and the queue gives it to one worker. Each working drain therefore looks now and
then; it asks while more is dirty than one claim takes and no task waits in the queue. So the others join one after
another, and however many workers there are, one request too many waits at the most.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from visual_search.catalog import get_catalog
from visual_search.index import claims, queue, versions
from visual_search.index.drain import claim_size
from visual_search.index.finish import Result

LOOK_SECONDS = 1  # a claim takes a second or more; each look costs two queries of a few rows


def share_backlog() -> Callable[[Result], None]:
    """Return what a drain calls with each committed result.

    Not before the first result: a drain that fails at once (no checkpoint, no database) would only call for others
    that fail as well.
    """
    looked_at = float("-inf")

    def look(result: Result) -> None:
        nonlocal looked_at
        if time.monotonic() - looked_at >= LOOK_SECONDS:
            looked_at = time.monotonic()
            if has_backlog():
                queue.enqueue_another()

    return look


def has_backlog() -> bool:
    """Say whether more waits, claimed by nobody, than one claim takes: products, or as many marks as it looks at."""
    products = claim_size()
    window = products * claims.WINDOW
    marks = claims.unclaimed_marks(versions.find_active(), get_catalog().database).order_by("pk")
    keys = list(marks.values_list("key", flat=True)[: window + 1])
    return len(keys) > window or len(set(keys)) > products
