"""Report the state of the index in numbers, for `index_status`, the system checks and the shop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count, QuerySet
from django.db.models.functions import Now

from visual_search.catalog import get_catalog
from visual_search.components import store_for
from visual_search.exceptions import VisualSearchError
from visual_search.index import queue, versions
from visual_search.models import Embedding, FeedState, IndexEntry, IndexMark, IndexVersion, QueueState


@dataclass(slots=True)
class IndexStatus:
    """The state of the index.

    states: entries by state. indexed, searchable: images. oldest_mark_seconds: how long the oldest mark has waited.
    """

    version: IndexVersion | None
    problem: str
    states: dict[str, int]
    marks: int
    oldest_mark_seconds: float | None
    in_work: int
    indexed: int
    searchable: int | None
    lag: int | None
    swept_seconds: float | None
    waiting_tasks: int | None


def read_status() -> IndexStatus:
    """Return the state of the index, read from the tables and a shared store's position."""
    database = get_catalog().database
    version = versions.find_active()
    entries = IndexEntry.objects.using(database).filter(version=version)
    counted = dict(entries.values_list("state").annotate(Count("pk")).order_by())
    marks = IndexMark.objects.using(database)
    embeddings = Embedding.objects.using(database).filter(version=version, vector__isnull=False)
    position, problem = _position(version)
    state = QueueState.objects.using(database).first() or QueueState()
    last_seq = FeedState.objects.using(database).values_list("last_seq", flat=True).first() or 0
    return IndexStatus(
        version=version,
        problem=(versions.why_outdated(version) if version else "") or state.drain_error or problem,
        states={state.value: counted.get(state.value, 0) for state in IndexEntry.State},
        marks=marks.count(),
        oldest_mark_seconds=_age_seconds(marks.order_by("pk"), "marked_at"),
        in_work=entries.filter(lease_until__gt=Now()).count(),
        indexed=embeddings.count(),
        searchable=None if position is None else embeddings.filter(seq__lte=position).count(),
        lag=None if position is None else last_seq - position,
        swept_seconds=_age_seconds(QueueState.objects.using(database).filter(swept_at__isnull=False), "swept_at"),
        waiting_tasks=queue.waiting_tasks(),
    )


def failures(version: IndexVersion | None, *, limit: int = 20) -> list[tuple[str, str, str]]:
    """Return key, state and reason of products that are not indexed, or only partly."""
    states = [IndexEntry.State.FAILED, IndexEntry.State.PARTIAL]
    entries = IndexEntry.objects.using(get_catalog().database).filter(version=version, state__in=states)
    return list(entries.order_by("key").values_list("key", "state", "error")[:limit])


def _position(version: IndexVersion | None) -> tuple[int | None, str]:
    """Return a shared store's seq (None for a private store, which is fed before each query) and its error."""
    if version is None:
        return None, ""
    try:
        store = store_for(version)
        position = store.position() if store.is_shared else None
    except VisualSearchError as error:
        return None, str(error)
    return (position.seq if position else 0) if store.is_shared else None, ""


def _age_seconds(rows: QuerySet[Any], field: str) -> float | None:
    """Return the age in seconds of the first row's time, by the database's clock."""
    found = rows.annotate(now=Now()).values_list(field, "now").first()
    return None if found is None else max(0.0, (found[1] - found[0]).total_seconds())


def format_duration(seconds: float) -> str:
    """Return a readable duration, such as "45 s", "12 min", "3 h" or "2 days"."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
