"""The default store: Qdrant's own engine inside the process.

A shard of the engine bears exactly one process. So each process has its own, in a private folder, filled by
the feed and thrown away at the end; nothing of it has to survive.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError, StoreUnavailable
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, check_vectors
from visual_search.stores.process import PrivateFolder, never_destroy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_edge import EdgeShard

POINTS_PER_UPDATE = 256  # an update holds the GIL: about 30 ms at 1,024 dimensions


class EdgeStore:
    """A private, flat (exact) shard in a temporary folder; one per process."""

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
        self._shard: EdgeShard | None = None
        self._private_folder: PrivateFolder | None = None
        self._discard: weakref.finalize[..., EdgeStore] | None = None
        self._position: Position | None = None

    def ensure(self) -> None:
        self._open()

    def reset(self) -> None:
        with self._guarded():
            old = self._discard
            self._create()
            if old is not None:
                old()

    def drop(self) -> None:
        self.close()

    def close(self) -> None:
        with self._guarded():
            discard, self._discard, self._shard, self._position = self._discard, None, None, None
            if discard is not None:
                discard()

    def upsert(self, points: Sequence[Point]) -> None:
        if not points:
            return
        rows = mapping.checked_rows(points, self.dim)
        with self._calling("write to") as shard:
            import qdrant_edge as engine

            for start in range(0, len(points), POINTS_PER_UPDATE):
                batch = slice(start, start + POINTS_PER_UPDATE)
                new = [
                    engine.Point(point.id, row.tolist(), mapping.to_payload(point))
                    for point, row in zip(points[batch], rows[batch], strict=True)
                ]
                shard.update(engine.UpdateOperation.upsert_points(new))

    def delete(self, ids: Sequence[str]) -> None:
        with self._calling("delete from") as shard:
            import qdrant_edge as engine

            shard.update(engine.UpdateOperation.delete_points(list(ids)))

    def query(
        self, vector: NDArray[np.float32], filters: Filters, *, limit: int, score_threshold: float | None = None
    ) -> list[Hit]:
        return self._query(check_vectors(vector, self.dim)[:1], filters, limit, score_threshold)[0]

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        return self._query(check_vectors(vectors, self.dim), filters, limit, None)

    def _query(
        self, rows: NDArray[np.float32], filters: Filters, limit: int, score_threshold: float | None
    ) -> list[list[Hit]]:
        with self._calling("query") as shard:
            import qdrant_edge as engine

            requests = [
                engine.QueryRequest(
                    limit=limit,
                    query=engine.Query.Nearest(row.tolist()),
                    filter=_engine_filter(filters),
                    score_threshold=mapping.exclusive_threshold(score_threshold),
                    with_payload=mapping.HIT_KEYS,
                )
                for row in rows
            ]
            answers = shard.query_batch(engine.QueryBatchRequest(requests))
            return [[mapping.to_hit(point) for point in answer] for answer in answers]

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        with self._calling("read from") as shard:
            return [mapping.to_point(record) for record in shard.retrieve(list(ids), True, True)]

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        offset: Any = None
        while True:
            with self._calling("read from") as shard:
                import qdrant_edge as engine

                request = engine.ScrollRequest(
                    offset=offset, limit=batch, with_payload=[mapping.SEQ], with_vector=False
                )
                records, offset = shard.scroll(request)
                page = [(str(record.id), int((record.payload or {})[mapping.SEQ])) for record in records]
            yield from page
            if offset is None:
                return

    def count(self, filters: Filters | None = None) -> int:
        with self._calling("count in") as shard:
            import qdrant_edge as engine

            return shard.count(engine.CountRequest(exact=True, filter=_engine_filter(filters)))

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        with self._calling("count values in") as shard:
            import qdrant_edge as engine

            # "Not exact" allows a point to be counted in two segments, which happens while another thread optimizes:
            # here none does. It reads the index instead of the points, 0.3 ms instead of 5 for 10,000 products.
            request = engine.FacetRequest(key=name, limit=limit, exact=False, filter=_engine_filter(filters))
            hits: Any = shard.facet(request).hits
            return {hit.value: hit.count for hit in hits}

    def bounds(self, name: str, filters: Filters) -> Range | None:
        with self._calling("find the bounds in") as shard:
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
        with self._calling("look at") as shard:
            info = shard.info()
            return {
                "engine": f"qdrant-edge {metadata.version('qdrant-edge-py')}",
                "points": info.points_count,
                "segments": info.segments_count,
                "folder": str(self._private_folder and self._private_folder.path),
            }

    def position(self) -> Position | None:
        with self._guarded():
            return self._position

    def set_position(self, position: Position) -> None:
        with self._guarded():
            self._open()
            self._position = position

    @contextmanager
    def _calling(self, attempt: str) -> Iterator[EdgeShard]:
        shard = self._open()
        try:
            with engine_errors(f"{attempt} edge store {self.name!r}"):
                yield shard
        except StoreUnavailable:
            # Nothing in it has to survive: the next query opens an empty one, and the feed fills it.
            with suppress(StoreUnavailable):
                self.close()
            raise

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        # Some servers fork in C, where Python's fork hooks don't run: the pid is looked at on every call too.
        if self._pid != os.getpid():
            self._leave_to_parent()
        with self._lock:
            yield

    def _open(self) -> EdgeShard:
        with self._guarded():
            return self._shard or self._create()

    def _create(self) -> EdgeShard:
        try:
            import numpy  # noqa: F401
            import qdrant_edge as engine
        except ImportError as error:
            raise ConfigurationError(
                f"EdgeStore needs {error.name!r}, which is not installed. "
                'Run `pip install "django-visual-search[edge]"`.'
            ) from error
        with engine_errors(f"open edge store {self.name!r} in {str(self.folder)!r}"):
            folder = PrivateFolder(self.folder)
            try:
                shard = engine.EdgeShard.create(str(folder.path / "shard"), _config(self.dim))
                # Before the first point: afterwards the engine has to go through all of them.
                for key, index_type in mapping.payload_indexes(self.fields).items():
                    schema = getattr(engine.PayloadSchemaType, index_type.capitalize())
                    shard.update(engine.UpdateOperation.create_field_index(key, schema))
            except BaseException:
                folder.remove()
                raise
        self._shard, self._private_folder, self._position = shard, folder, None
        self._discard = weakref.finalize(self, _discard, shard, folder)  # runs at exit too
        return shard

    def _leave_to_parent(self) -> None:
        """In a forked child: let go of the parent's shard without destroying it.

        A query on it hangs, and its destructor would write to the files that the parent is using.
        """
        if self._shard is not None and self._private_folder is not None and self._discard is not None:
            never_destroy(self._shard)
            self._discard.detach()
            self._private_folder.leave_to_parent()
        self._forget()


def _config(dim: int) -> Any:
    import qdrant_edge as engine

    return engine.EdgeConfig(
        vectors=engine.EdgeVectorParams(size=dim, distance=engine.Distance.Cosine),
        # m=0 is a flat scan; the other two have no effect then, but must be given.
        hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=1),
        max_search_threads=1,
        wal_enabled=False,  # the feed refills a lost shard
    )


def _engine_filter(filters: Filters | None) -> Any:
    import numpy as np
    import qdrant_edge as engine

    # The engine takes Python's True for the integer 1, which matches no boolean; numpy's it takes as a boolean.
    return mapping.to_engine_filter(filters, engine, engine.RangeFloat, np.bool_)


@contextmanager
def engine_errors(attempt: str) -> Iterator[None]:
    """Raise StoreUnavailable for what the engine raises: plain Exception, or PanicException for a Rust panic."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt, SystemExit
        raise StoreUnavailable(f"Could not {attempt}: {type(error).__name__}: {error}") from error


def _discard(shard: EdgeShard, folder: PrivateFolder) -> None:
    try:
        with engine_errors(f"close the shard in {str(folder.path)!r}"):
            shard.close()
    finally:
        folder.remove()


_stores: weakref.WeakSet[EdgeStore] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
