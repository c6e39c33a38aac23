"""Index the shop's products: marks, drain, feed, index versions, verification."""

from visual_search.index.marks import mark_dirty
from visual_search.index.status import IndexStatus, read_status

__all__ = ["IndexStatus", "mark_dirty", "read_status"]
