"""What a Qdrant server refuses: what says nothing valid, what lacks a payload index, what its strict mode forbids.

As 1.18.3 does (tests/stores/test_recorded_server.py). Of strict mode it knows the limits of one request and filters
that lack an index, a deletion's as if it were a search's; not rates, sizes of a collection, numbers of conditions.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

FACET_INDEXES = {"keyword", "integer", "bool"}  # of the types that QdrantStore makes; others exist
ORDER_INDEXES = {"integer", "float"}

STATUSES = {  # of a server, by what the engine in memory says to the same request
    r"Collection \S+ already exists": 409,
    r"Collection \S+ not found|Point \S+ is not found": 404,
    r"Collection name|Vector size|limit value": 422,
}


class Refused(Exception):
    """A request that is answered with this status, and with the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def status_of(error: Exception) -> int:
    """Return what a server answers where the engine in memory raises a ValueError."""
    if isinstance(error, Refused):
        return error.status
    return next((status for said, status in STATUSES.items() if re.match(said, str(error))), 400)


def check_ids(*ids: Any) -> None:
    """Refuse ids of points that are neither an unsigned integer nor a UUID: the engine takes some of them."""
    for each in ids:
        try:
            valid = each >= 0 if isinstance(each, int) else bool(uuid.UUID(each))
        except ValueError:
            valid = False
        if not valid:
            raise Refused(400, f"value {each} is not a valid point ID")


def check_index(key: str, wanted: set[str], indexes: Mapping[str, str]) -> None:
    """Refuse to count or to order by a field without an index of a fitting type."""
    if indexes.get(key) not in wanted:
        raise Refused(400, f"No appropriate index for `{key}`. Please create one.")


def check_strictly(
    strict: Mapping[str, Any], body: Mapping[str, Any], indexes: Mapping[str, str], *, timeout: int
) -> None:
    """Refuse what the collection's strict mode forbids.

    strict: its limits; one that is missing forbids nothing. timeout: seconds that the request asks for, 0 for none.
    """
    if not strict.get("enabled"):
        return
    for name, used in _used(body, timeout):
        most = strict.get(name)
        if most is not None and used > most:
            raise Refused(400, f"Limit exceeded {used} > {most} for {name}")
    for asked in _searches(body):
        if (asked.get("params") or {}).get("exact") and strict.get("search_allow_exact") is False:
            raise Refused(400, "Exact search is disabled")
        for condition in _conditions(asked.get("filter")):
            key = condition.get("key")
            if key is not None and key not in indexes and strict.get("unindexed_filtering_retrieve") is False:
                raise Refused(400, f"Index required but not found for {key!r}")


def _used(body: Mapping[str, Any], timeout: int) -> Iterator[tuple[str, float]]:
    """Yield how much a request uses of each limit, by the limit's name."""
    yield "max_timeout", timeout
    yield "upsert_max_batchsize", len(body.get("points", []))
    yield "search_max_batchsize", len(body.get("searches", []))
    for asked in _searches(body):
        params = asked.get("params") or {}
        yield "max_query_limit", asked.get("limit") or 0
        yield "search_max_hnsw_ef", params.get("hnsw_ef") or 0
        yield "search_max_oversampling", (params.get("quantization") or {}).get("oversampling") or 0
        for condition in _conditions(asked.get("filter")):
            named = condition.get("has_id", []), (condition.get("match") or {}).get("any", [])
            yield "condition_max_size", max(map(len, named))


def _searches(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [body, *body.get("searches", [])]


def _conditions(wanted: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the conditions of a filter, those of the filters in it too."""
    for clause in ("must", "should", "must_not"):
        for condition in (wanted or {}).get(clause) or []:
            yield condition
            yield from _conditions(condition)
