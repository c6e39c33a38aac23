"""The reference store that the others are compared with: each method is as plain and exact as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from visual_search.exceptions import DimensionMismatch
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, check_vectors


class ReferenceStore:
    is_shared = False

    def __init__(self, *, name: str, dim: int, fields: Mapping[str, FieldKind]) -> None:
        self.name, self.dim, self.fields = name, dim, dict(fields)
        self.reset()

    def ensure(self) -> None:
        pass

    def reset(self) -> None:
        self._points: dict[str, Point] = {}
        self._position: Position | None = None

    def drop(self) -> None:
        self.reset()

    def close(self) -> None:
        self.reset()

    def upsert(self, points: Sequence[Point]) -> None:
        for point in points:
            if point.vector.shape != (self.dim,):
                raise DimensionMismatch(f"Got {point.vector.shape}; the store holds ({self.dim},).")
            check_vectors(point.vector, self.dim)
        self._points.update({point.id: point for point in points})

    def delete(self, ids: Sequence[str]) -> None:
        for point_id in ids:
            self._points.pop(point_id, None)

    def query(
        self, vector: np.ndarray, filters: Filters, *, limit: int, score_threshold: float | None = None
    ) -> list[Hit]:
        row = check_vectors(vector, self.dim)[0]
        threshold = np.float32(-np.inf if score_threshold is None else score_threshold)
        scored = [(float(np.float32(point.vector @ row)), point) for point in self._matching(filters)]
        scored.sort(key=lambda pair: -pair[0])
        return [Hit(point.id, score, point.product, point.image) for score, point in scored if score >= threshold][
            :limit
        ]

    def query_batch(self, vectors: np.ndarray, filters: Filters, *, limit: int) -> list[list[Hit]]:
        return [self.query(row, filters, limit=limit) for row in check_vectors(vectors, self.dim)]

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        return [self._points[point_id] for point_id in ids if point_id in self._points]

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        yield from [(point.id, point.seq) for point in self._points.values()]

    def count(self, filters: Filters | None = None) -> int:
        return len(self._matching(filters or Filters()))

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        counts = Counter(value for point in self._matching(filters) for value in set(values_of(point, name)))
        return dict(counts.most_common(limit))

    def bounds(self, name: str, filters: Filters) -> Range | None:
        values = [value for point in self._matching(filters) for value in values_of(point, name)]
        return Range(min(values), max(values)) if values else None

    def health(self) -> dict[str, Any]:
        return {"engine": "numpy", "points": len(self._points)}

    def position(self) -> Position | None:
        return self._position

    def set_position(self, position: Position) -> None:
        self._position = position

    def _matching(self, filters: Filters) -> list[Point]:
        return [point for point in self._points.values() if is_match(point, filters)]


def is_match(point: Point, filters: Filters) -> bool:
    return (
        all(any(value in wanted for value in values_of(point, name)) for name, wanted in filters.any_of.items())
        and all(
            any(
                (interval.minimum is None or value >= interval.minimum)
                and (interval.maximum is None or value <= interval.maximum)
                for value in values_of(point, name)
            )
            for name, interval in filters.ranges.items()
        )
        and filters.is_main in (None, point.is_main)
    )


def values_of(point: Point, name: str) -> list[Any]:
    value = point.payload.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]
