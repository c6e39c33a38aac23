"""Define vector stores: points, filters, hits, and the methods that search and feed need.

A store holds the points of one index version. All of its data is derived from the Embedding table and can be fed
again, so a store may lose its points, provided it loses its position too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

from visual_search.exceptions import DimensionMismatch, InvalidVector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FieldKind = Literal["keyword", "number", "boolean"]
PayloadValue = str | float | bool | list[str] | list[float] | list[bool] | None

UNIT_TOLERANCE = 1e-3  # a float16 vector, normalised again in float32, is within 1e-6


@dataclass(frozen=True, slots=True)
class Point:
    """One embedded product image.

    id: UUID as text. vector: float32 (dim,), unit length. payload: the values of its product's declared filters.
    seq: the row's position in the order of commits.
    """

    id: str
    vector: NDArray[np.float32]
    product: str
    image: str
    is_main: bool
    seq: int
    payload: Mapping[str, PayloadValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval. None leaves that end open."""

    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions on the payload, all of which must hold.

    any_of: the field has at least one of these values (strings or booleans; an empty tuple matches nothing).
    ranges: the number lies in the closed interval. is_main: match only main images (True) or only others (False).
    """

    any_of: Mapping[str, tuple[str | bool, ...]] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    is_main: bool | None = None

    def __bool__(self) -> bool:
        return bool(self.any_of or self.ranges or self.is_main is not None)


class Hit(NamedTuple):
    """A point found by a query. score: cosine, higher is better.

    A tuple, because a query creates 60 or more, and creating a frozen dataclass takes three times as long.
    """

    id: str
    score: float
    product: str
    image: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a store has been fed: it contains every row of this epoch up to and including `seq`."""

    epoch: str
    seq: int


class VectorStore(Protocol):
    """The interface of every store. All methods raise StoreUnavailable when the engine fails.

    The constructor takes `name` (of the collection or shard), `dim`, `fields` (the declared filters and their
    kinds) and the OPTIONS of the setting. It opens nothing.
    """

    is_shared: bool
    """True: all processes share one store, fed by the worker. False: each process feeds its own before a query."""

    def ensure(self) -> None:
        """Open the store, creating it with its payload indexes if it is missing. Raises DimensionMismatch."""

    def reset(self) -> None:
        """Empty the store and clear its position."""

    def drop(self) -> None:
        """Delete the store permanently, because its version was deleted. A missing store is not an error."""

    def close(self) -> None:
        """Release memory, files and connections. A later call opens the store again, possibly empty."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points with their whole payload; they are searchable on return. Raises InvalidVector."""

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points by id, completely on return. Unknown ids are not an error."""

    def query(
        self,
        vector: NDArray[np.float32],
        filters: Filters,
        *,
        limit: int,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """Return up to `limit` nearest points, best first, without scores below `score_threshold`."""

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        """Return one list of hits per row of `vectors`."""

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        """Return the points that exist, in any order."""

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        """Yield (id, seq) of every point."""

    def count(self, filters: Filters | None = None) -> int:
        """Return the exact number of points."""

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        """Return the number of points for each value of a keyword or boolean field, most frequent first."""

    def bounds(self, name: str, filters: Filters) -> Range | None:
        """Return the lowest and the highest value of a number field, or None if no point has one."""

    def health(self) -> dict[str, Any]:
        """Return the engine's name and state, for people to read."""

    def position(self) -> Position | None:
        """Return how far the store has been fed, or None if it never was."""

    def set_position(self, position: Position) -> None:
        """Record how far the store has been fed."""


class SharedStore(VectorStore, Protocol):
    """A store that all processes share. Several may write to it, and a paused writer may be late."""

    def delete_up_to(self, ids: Sequence[str], *, seq: int) -> None:
        """Delete points by id, except those that are newer than `seq`."""

    def scroll_slice(self, start: str | None, *, limit: int) -> tuple[list[tuple[str, int]], str | None]:
        """Return (id, seq) of the points from id `start` on, ordered by id, and the start of the next slice."""

    def point_alias(self, alias: str) -> None:
        """Point the alias to this store's collection, atomically. Do nothing if it already points there."""


def as_shared(store: VectorStore) -> SharedStore | None:
    """Return the store if all processes share it, otherwise None."""
    return cast(SharedStore, store) if store.is_shared else None


def check_vectors(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return `vectors` as contiguous float32 (n, dim) after checking them.

    This is the only check before the engine. Raises DimensionMismatch, or InvalidVector for rows that are not finite
    or not of unit length: engines accept such rows silently and rank them arbitrarily.
    """
    import numpy as np

    rows = np.asarray(vectors, dtype=np.float32, order="C")
    if rows.ndim == 1:
        rows = rows[None]
    if rows.shape[1] != dim:
        raise DimensionMismatch(f"Got {rows.shape[1]}-dimensional vectors; the store holds {dim}-dimensional ones.")
    lengths = np.sqrt(np.add.reduce(rows * rows, axis=1))  # np.linalg.norm takes longer than the rest of a small query
    invalid = ~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE)  # NaN is invalid too
    if invalid.any():
        row = int(invalid.argmax())
        raise InvalidVector(f"Vector {row} has length {lengths[row]!r}; expected unit length.")
    return rows
