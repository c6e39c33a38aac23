"""Error responses: status, code and message of an error, and when to retry."""

from __future__ import annotations

import logging
from typing import Any

from django.db import connections, transaction

from visual_search.exceptions import BadRequest, Unavailable, VisualSearchError
from visual_search.web.messages import UNAVAILABLE

logger = logging.getLogger(__name__)

TOO_LARGE = {"photo_too_large", "photo_too_many_pixels"}
RETRY_AFTER_SECONDS = 10


def describe_error(error: VisualSearchError) -> tuple[int, dict[str, str]]:
    """Return the status and body of the response to an error. Log errors that only staff can fix."""
    if isinstance(error, BadRequest):
        is_large = error.code in TOO_LARGE
        return (413 if is_large else 400), {"code": error.code, "detail": str(error)}
    logger.error("Search unavailable (%s): %s", error.code, error)
    code = error.code if isinstance(error, Unavailable) else Unavailable.code
    return 503, {"code": code, "detail": str(UNAVAILABLE)}


def without_transaction(view: Any) -> Any:
    """Return the view, exempt from ATOMIC_REQUESTS in every database.

    Decoding and embedding a photo takes a while; a transaction would hold SQLite's write lock meanwhile.
    """
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view
