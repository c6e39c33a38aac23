"""What a vector store is: points, filters, hits, and the calls that search and feed need.

A store holds the points of one index version. It is derived: everything in it can be fed again from the
Embedding table, so a store may lose all it has, as long as it then forgets its position too.
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

UNIT_TOLERANCE = 1e-3  # a float16 vector that was made unit again in float32 is within 1e-6


@dataclass(frozen=True, slots=True)
class Point:
    """One embedded product image.

    id: UUID as text. vector: float32 (dim,), unit length. payload: the declared filters of its product.
    seq: where the row stands in the order of commits.
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
    """A closed interval; None leaves that side open."""

    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions on the payload; all of them must hold.

    any_of: the field has at least one of these values (strings or booleans; an empty tuple matches nothing).
    ranges: the number lies in the closed interval. is_main: only a product's main image.
    """

    any_of: Mapping[str, tuple[str | bool, ...]] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    is_main: bool | None = None

    def __bool__(self) -> bool:
        return bool(self.any_of or self.ranges or self.is_main is not None)


class Hit(NamedTuple):
    """A point that answers a query. score: cosine, higher is better.

    A tuple, because a query makes 60 and more of them, and a frozen dataclass takes three times as long to make.
    """

    id: str
    score: float
    product: str
    image: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a store has been fed: every row of this epoch up to and with `seq` is in it."""

    epoch: str
    seq: int


class VectorStore(Protocol):
    """The calls every store has. Each raises StoreUnavailable when the engine fails.

    A store is made with `name` (which collection or shard), `dim`, `fields` (declared filters and their
    kinds) and the options of its setting; making one opens nothing.
    """

    is_shared: bool
    """One store for all processes, fed by the worker; otherwise each process feeds its own before a query."""

    def ensure(self) -> None:
        """Open the store; create it with its payload indexes where it is missing. Raises DimensionMismatch."""

    def reset(self) -> None:
        """Empty the store and forget its position."""

    def drop(self) -> None:
        """Delete the store for good: its version is gone. One that is not there is no error."""

    def close(self) -> None:
        """Give memory, files and connections back. A later call opens the store again, perhaps empty."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Write points with their whole payload; searchable on return. Raises InvalidVector."""

    def delete(self, ids: Sequence[str]) -> None:
        """Delete points by id; unknown ids are no error. Done on return."""

    def query(
        self,
        vector: NDArray[np.float32],
        filters: Filters,
        *,
        limit: int,
        score_threshold: float | None = None,
    ) -> list[Hit]:
        """Return at most `limit` nearest points, best first; scores below `score_threshold` are left out."""

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        """Return one list of hits per row of `vectors`."""

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        """Return the points that exist, in no promised order."""

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        """Yield (id, seq) of every point."""

    def count(self, filters: Filters | None = None) -> int:
        """Return the exact number of points."""

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        """Return how many points have each value of a keyword or boolean field, most first."""

    def bounds(self, name: str, filters: Filters) -> Range | None:
        """Return the lowest and the highest value of a number field, or None where no point has one."""

    def health(self) -> dict[str, Any]:
        """Return the engine's name and state, for people."""

    def position(self) -> Position | None:
        """Return how far the store has been fed, or None for a store that never was."""

    def set_position(self, position: Position) -> None:
        """Remember how far the store has been fed."""


class SharedStore(VectorStore, Protocol):
    """A store that all processes share: several may write to it, one of them late."""

    def delete_through(self, ids: Sequence[str], *, seq: int) -> None:
        """Delete points by id, but not those that are newer than `seq`."""

    def scroll_slice(self, start: str | None, *, limit: int) -> tuple[list[tuple[str, int]], str | None]:
        """Return (id, seq) of the points from id `start` on, in the order of ids, and where the next slice starts."""

    def point_alias(self, alias: str) -> None:
        """Let the alias name this store's collection, in one step; no error if it does already."""


def as_shared(store: VectorStore) -> SharedStore | None:
    """Return the store if all processes share it."""
    return cast(SharedStore, store) if store.is_shared else None


def check_vectors(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    """Return `vectors` as contiguous float32 (n, dim) after the one check at the store's border.

    Raises DimensionMismatch, or InvalidVector for rows that are not finite or not of unit length: engines
    accept such rows silently and then rank them anywhere.
    """
    import numpy as np

    rows = np.asarray(vectors, dtype=np.float32, order="C")
    if rows.ndim == 1:
        rows = rows[None]
    if rows.shape[1] != dim:
        raise DimensionMismatch(f"Got {rows.shape[1]}-dimensional vectors; the store holds {dim}-dimensional ones.")
    lengths = np.sqrt(np.add.reduce(rows * rows, axis=1))  # np.linalg.norm takes longer than the rest of a small query
    wrong = ~(np.abs(lengths - 1.0) <= UNIT_TOLERANCE)  # NaN compares as wrong too
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidVector(f"Vector {row} has length {lengths[row]!r}; unit length was wanted.")
    return rows
