"""The default store: Qdrant's own engine inside the process.

A shard of the engine bears exactly one process. So each process has its own, in a private folder, filled by
the feed and thrown away at the end; nothing of it has to survive.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from visual_search.exceptions import ConfigurationError, StoreUnavailable
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, check_vectors
from visual_search.stores.shard import Damaged, PrivateShard, engine_errors, is_engine_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_edge import EdgeShard

logger = logging.getLogger(__name__)


class EdgeStore:
    """A private, flat shard in a temporary folder; one per process.

    Up to 5,000 points every query is exact; beyond, candidates are found by 4-bit codes and scored exactly.
    A shard that no longer holds what was written to it is closed, and the next query fills a new one.
    """

    is_shared = False

    def __init__(
        self, *, name: str, dim: int, fields: Mapping[str, FieldKind], folder: str | os.PathLike[str] | None = None
    ) -> None:
        """folder: where the private folders are made; the system's temporary folder unless given."""
        self.name = name
        self.dim = dim
        self.fields = dict(fields)
        self.folder = Path(folder or tempfile.gettempdir())
        self._forget()
        _stores.add(self)

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._private: PrivateShard | None = None
        self._position: Position | None = None

    def ensure(self) -> None:
        self._open()

    def reset(self) -> None:
        with self._guarded():
            old = self._private
            self._create()
            if old is not None:
                old.discard()

    def drop(self) -> None:
        self.close()

    def close(self) -> None:
        with self._guarded():
            old, self._private, self._position = self._private, None, None
            if old is not None:
                old.discard()

    def upsert(self, points: Sequence[Point]) -> None:
        if not points:
            return
        rows = mapping.checked_rows(points, self.dim)
        with self._calling("write to") as private:
            private.upsert(points, rows)

    def delete(self, ids: Sequence[str]) -> None:
        with self._calling("delete from") as private:
            private.delete(ids)

    def query(
        self, vector: NDArray[np.float32], filters: Filters, *, limit: int, score_threshold: float | None = None
    ) -> list[Hit]:
        return self._query(check_vectors(vector, self.dim)[:1], filters, limit, score_threshold)[0]

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        return self._query(check_vectors(vectors, self.dim), filters, limit, None)

    def _query(
        self, rows: NDArray[np.float32], filters: Filters, limit: int, score_threshold: float | None
    ) -> list[list[Hit]]:
        private = self._open()
        try:  # as _calling does, in half the time
            return private.search(rows, limit=limit, filter=_engine_filter(filters), score_threshold=score_threshold)
        except BaseException as error:
            self._fail(error, "query", private)

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        with self._calling("read from") as private:
            return private.retrieve(ids)

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        offset: Any = None
        while True:
            with self._calling("read from") as private:
                page, offset = private.page(offset, batch)
            yield from page
            if offset is None:
                return

    def count(self, filters: Filters | None = None) -> int:
        with self._reading("count in") as shard:
            import qdrant_edge as engine

            return shard.count(engine.CountRequest(exact=True, filter=_engine_filter(filters)))

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        with self._reading("count values in") as shard:
            import qdrant_edge as engine

            # "Not exact" allows a point to be counted in two segments, which happens while another thread optimizes:
            # here none does, and there is one segment. It reads the index instead of the points, 0.3 ms instead of 5
            # for 10,000 products.
            request = engine.FacetRequest(key=name, limit=limit, exact=False, filter=_engine_filter(filters))
            hits: Any = shard.facet(request).hits
            return {hit.value: hit.count for hit in hits}

    def bounds(self, name: str, filters: Filters) -> Range | None:
        with self._reading("find the bounds in") as shard:
            import qdrant_edge as engine

            ends: list[float] = []
            for direction in (engine.Direction.Asc, engine.Direction.Desc):
                request = engine.ScrollRequest(
                    limit=1,
                    filter=_engine_filter(filters),
                    with_payload=False,
                    with_vector=False,
                    order_by=engine.OrderBy(name, direction=direction),
                )
                ends += [float(record.order_value) for record in shard.scroll(request)[0]]  # type: ignore[arg-type]
            return Range(*ends) if ends else None

    def health(self) -> dict[str, Any]:
        with self._reading("look at") as shard:
            info = shard.info()
            return {
                "engine": f"qdrant-edge {metadata.version('qdrant-edge-py')}",
                "points": info.points_count,
                "segments": info.segments_count,
                "folder": str(self._private and self._private.folder.path),
            }

    def position(self) -> Position | None:
        with self._guarded():
            return self._position

    def set_position(self, position: Position) -> None:
        """Remember how far the store has been fed. Raises StoreUnavailable if the shard is damaged.

        A first position ends a filling: then every id is looked at.
        """
        with self._calling("end the feed of") as private:
            if damage := private.find_damage(thoroughly=self.position() is None):
                raise Damaged(damage)
        with self._guarded():
            if self._private is private:
                self._position = position

    @contextmanager
    def _calling(self, attempt: str) -> Iterator[PrivateShard]:
        private = self._open()
        try:
            yield private
        except BaseException as error:
            self._fail(error, attempt, private)

    def _fail(self, error: BaseException, attempt: str, private: PrivateShard) -> NoReturn:
        """Raise StoreUnavailable for an engine's error; close a shard that can no longer be trusted.

        A request that the engine merely refused must not cost a refill: the shard is looked at first.
        """
        if not is_engine_error(error):
            raise error
        told = StoreUnavailable(f"Could not {attempt} edge store {self.name!r}: {type(error).__name__}: {error}")
        try:
            damage = private.find_damage(thoroughly=True)
        except BaseException as failure:
            if not is_engine_error(failure):
                raise
            damage = f"{type(failure).__name__}: {failure}"
        if damage:
            logger.warning("%s. The next query fills a new shard: %s.", told, damage)
            self._close(private)
        raise told from error

    @contextmanager
    def _reading(self, attempt: str) -> Iterator[EdgeShard]:
        with self._calling(attempt) as private:
            yield private.shard

    def _close(self, private: PrivateShard) -> None:
        with self._guarded(), suppress(StoreUnavailable):
            if self._private is private:  # no other thread was faster
                self.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        # Some servers fork in C, where Python's fork hooks don't run: the pid is looked at on every call too.
        if self._pid != os.getpid():
            self._leave_to_parent()
        with self._lock:
            yield

    def _open(self) -> PrivateShard:
        if (private := self._private) is not None and self._pid == os.getpid():
            return private  # each query comes by here: without the lock
        with self._guarded():
            return self._private or self._create()

    def _create(self) -> PrivateShard:
        try:
            import numpy  # noqa: F401
            import qdrant_edge  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                f"EdgeStore needs {error.name!r}, which is not installed. "
                'Run `pip install "django-visual-search[edge]"`.'
            ) from error
        with engine_errors(f"open edge store {self.name!r} in {str(self.folder)!r}"):
            self._private, self._position = PrivateShard(self.folder, dim=self.dim, fields=self.fields), None
        return self._private

    def _leave_to_parent(self) -> None:
        """In a forked child: let go of the parent's shard without destroying it."""
        if self._private is not None:
            self._private.leave_to_parent()
        self._forget()


def _engine_filter(filters: Filters | None) -> Any:
    if not filters:
        return None
    import numpy as np
    import qdrant_edge as engine

    # The engine takes Python's True for the integer 1, which matches no boolean; numpy's it takes as a boolean.
    return mapping.to_engine_filter(filters, engine, engine.RangeFloat, np.bool_)


_stores: weakref.WeakSet[EdgeStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
