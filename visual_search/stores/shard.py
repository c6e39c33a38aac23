"""A private shard of the embedded engine: create, write, search, check and discard it.

The shard numbers its points and keeps the id, product and image of each number in memory, so a hit needs no payload
look-up. It also knows what the engine must contain, and so detects a damaged engine or damaged files.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import StoreUnavailable
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Hit, Point
from visual_search.stores.process import PrivateFolder, never_destroy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_edge import EdgeShard

POINTS_PER_UPDATE = 256  # an update holds the GIL for 5 to 30 ms
IDS_PER_PAGE = 10_000

# At 500 points the codes save nothing, at 5,000 an unnoticeable 0.1 ms, and without them the result is exact. Measured
# with `python -m benchmarks.store --sizes 500,5000 --engines edge_codes,edge_exact`.
EXACT_UP_TO = 5_000

# The number of candidates, found by 4-bit codes, that are rescored with their vectors: 0.2 to 0.4 µs each. Twice the
# limit is enough for clustered vectors, but with more points the codes can't distinguish more of them. In a synthetic
# worst case (text against the starter's vectors, of which text fills a tenth; 300 classes; limit 20) 80 candidates gave
# a recall@10 of 1.0 at 10,000 points, .91 at 30,000 and .42 at 100,000; with an extra 0.4 % of the points it is .999 at
# all three.
CANDIDATES_PER_HIT = 2
POINTS_PER_CANDIDATE = 250

# The engine reuses the space of replaced payloads only after a flush (10 to 40 ms). Without one, each rewrite grows the
# files by a third of a kilobyte or more.
REWRITES_PER_FLUSH = 10_000

FILE_BYTES_PER_VECTOR_BYTE = 4  # vectors, codes, payloads and indexes; a generous upper bound
PROBE_SCORE_MIN = 0.999  # of a unit float32 vector with itself


class Damaged(Exception):
    """The shard does not contain what was written to it."""


class PrivateShard:
    """A flat shard in its own locked folder, for the process that created it.

    Vectors are stored in full and as 4-bit codes (TurboQuant). The engine creates the codes when points are written,
    so no step has to be repeated as the shard grows, and there is never more than one segment.
    """

    def __init__(self, parent: Path, *, dim: int, fields: Mapping[str, FieldKind]) -> None:
        import qdrant_edge as engine

        self.folder = PrivateFolder(parent)
        try:
            self.folder.check_free_space(0)
            self.shard = engine.EdgeShard.create(str(self.folder.path / "shard"), _config(dim))
            # Before the first point: later, the engine would have to scan all points.
            for key, index_type in mapping.payload_indexes(fields).items():
                schema = getattr(engine.PayloadSchemaType, index_type.capitalize())
                self.shard.update(engine.UpdateOperation.create_field_index(key, schema))
        except BaseException:
            self.folder.remove()
            raise
        self.discard = weakref.finalize(self, _discard, self.shard, self.folder)  # runs at exit too
        self._writing = threading.RLock()
        self._numbers: dict[str, int] = {}  # id to number
        # Number to id, product and image. Numbers are never reused: a query in another thread may still refer to one.
        self._entries: list[tuple[str, str, str]] = []
        self._probe: tuple[int, NDArray[np.float32]] | None = None
        self._rewrites = 0

    def upsert(self, points: Sequence[Point], rows: NDArray[np.float32]) -> None:
        """Write points. rows: their checked vectors."""
        for start in range(0, len(points), POINTS_PER_UPDATE):
            batch = slice(start, start + POINTS_PER_UPDATE)
            self._upsert(points[batch], rows[batch])

    def _upsert(self, points: Sequence[Point], rows: NDArray[np.float32]) -> None:
        import qdrant_edge as engine

        self.folder.check_free_space(FILE_BYTES_PER_VECTOR_BYTE * rows.nbytes)
        with self._writing:
            first, fresh = len(self._entries), dict[str, int]()
            for point in points:
                if point.id not in self._numbers:
                    fresh.setdefault(point.id, first + len(fresh))
            numbers = [self._numbers[point.id] if point.id in self._numbers else fresh[point.id] for point in points]
            self._entries += [("", "", "")] * len(fresh)
            for number, point in zip(numbers, points, strict=True):  # before queries can find them
                self._entries[number] = point.id, point.product, point.image
            new = [
                engine.Point(number, row.tolist(), mapping.to_payload(point))
                for number, point, row in zip(numbers, points, rows, strict=True)
            ]
            self.shard.update(engine.UpdateOperation.upsert_points(new))
            self._numbers |= fresh
            self._probe = numbers[-1], rows[-1].copy()
            self._rewrites += len(points) - len(fresh)
            if self._rewrites >= REWRITES_PER_FLUSH:
                self.shard.flush()
                self._rewrites = 0

    def delete(self, ids: Sequence[str]) -> None:
        import qdrant_edge as engine

        with self._writing:
            known = {point_id: self._numbers[point_id] for point_id in ids if point_id in self._numbers}
            self.shard.update(engine.UpdateOperation.delete_points(list(known.values())))
            for point_id in known:
                del self._numbers[point_id]
            if self._probe is not None and self._probe[0] in known.values():
                self._probe = None

    def search(
        self, rows: NDArray[np.float32], *, limit: int, filter: Any = None, score_threshold: float | None = None
    ) -> list[list[Hit]]:
        """Return the hits for each row. Raises Damaged if points are missing."""
        import qdrant_edge as engine

        count = self.shard.info().points_count
        if count != len(self._numbers) and (damage := self.find_damage()):
            raise Damaged(damage)
        params = _search_params(count, limit)
        threshold = mapping.exclusive_threshold(score_threshold)
        requests = [
            engine.QueryRequest(
                limit=limit,
                query=engine.Query.Nearest(row.tolist()),
                filter=filter,
                score_threshold=threshold,
                params=params,
            )
            for row in rows
        ]
        answers = self.shard.query_batch(engine.QueryBatchRequest(requests))
        # A damaged shard may fail silently: the count is right, but queries find nothing.
        is_short = filter is None and threshold is None and min(map(len, answers), default=0) < min(limit, count)
        if is_short and (damage := self.find_damage()):
            raise Damaged(damage)
        entries = self._entries
        return [
            [
                Hit(point_id, scored.score, product, image)
                for scored in answer
                for point_id, product, image in (entries[scored.id],)  # type: ignore[index]
            ]
            for answer in answers
        ]

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        numbers = [self._numbers[point_id] for point_id in ids if point_id in self._numbers]
        return [
            mapping.to_point(record, id=self._entries[record.id][0])  # type: ignore[index]
            for record in self.shard.retrieve(list(numbers), True, True)
        ]

    def page(self, offset: Any, limit: int) -> tuple[list[tuple[str, int]], Any]:
        """Return (id, seq) of up to `limit` points, and the offset of the next page or None."""
        import qdrant_edge as engine

        request = engine.ScrollRequest(offset=offset, limit=limit, with_payload=[mapping.SEQ], with_vector=False)
        records, following = self.shard.scroll(request)
        entries = self._entries
        return [(entries[record.id][0], record.payload[mapping.SEQ]) for record in records], following  # type: ignore[index]

    def find_damage(self, *, thoroughly: bool = False) -> str:
        """Return how the shard differs from what was written to it, or an empty string.

        thoroughly: also check the number of every point, 0.1 s for 100,000. Raises what the engine raises.
        """
        with self._writing:  # during an update, the counts may differ
            found = self.shard.info().points_count
            if found != len(self._numbers):
                return f"it contains {found} points, but {len(self._numbers)} were written"
            if thoroughly and self._stored_numbers() != set(self._numbers.values()):
                return "the ids of its points differ from those written"
            score = self._probe_score()
            if not score >= PROBE_SCORE_MIN:  # NaN too
                return f"a stored vector finds itself with a score of only {score:.3f}"
        return ""

    def detach_after_fork(self) -> None:
        """In a forked child, drop the parent's shard without destroying it.

        A query on it hangs, and its destructor would write to the parent's files.
        """
        never_destroy(self.shard)
        self.discard.detach()
        self.folder.detach_after_fork()

    def _stored_numbers(self) -> set[Any]:
        import qdrant_edge as engine

        numbers: set[Any] = set()
        offset: Any = None
        while True:
            page = engine.ScrollRequest(offset=offset, limit=IDS_PER_PAGE, with_payload=False, with_vector=False)
            records, offset = self.shard.scroll(page)
            numbers.update(record.id for record in records)
            if offset is None:
                return numbers

    def _probe_score(self) -> float:
        import qdrant_edge as engine

        if not self._numbers:
            return 1.0
        if self._probe is None:  # it was deleted: use any other point
            records, _ = self.shard.scroll(engine.ScrollRequest(limit=1, with_payload=False, with_vector=True))
            vector: Any = records[0].vector
        else:
            vector = self._probe[1].tolist()
        request = engine.QueryRequest(
            limit=1, query=engine.Query.Nearest(vector), params=_search_params(len(self._numbers), 1)
        )
        return max((hit.score for hit in self.shard.query(request)), default=0.0)


def _config(dim: int) -> Any:
    import qdrant_edge as engine

    return engine.EdgeConfig(
        vectors=engine.EdgeVectorParams(size=dim, distance=engine.Distance.Cosine),
        # m=0 is a flat scan. Then the next two have no effect, but they are required.
        hnsw_config=engine.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=1),
        # The only quantization that the engine applies on writing. Int8 needs optimize(), which stops the whole process
        # for 1 s and more at 100,000 points; its queries take twice as long, with as many candidates for equal recall.
        quantization_config=engine.TurboQuantQuantizationConfig(
            bits=engine.TurboQuantBitSize.Bits4, memory=engine.Memory.Pinned
        ),
        max_search_threads=1,
        wal_enabled=False,  # not needed: the feed refills a lost shard
    )


def _search_params(count: int, limit: int) -> Any:
    import qdrant_edge as engine

    if count <= EXACT_UP_TO:
        quantization = engine.QuantizationSearchParams(ignore=True)
    else:
        candidates = CANDIDATES_PER_HIT * limit + count // POINTS_PER_CANDIDATE
        quantization = engine.QuantizationSearchParams(rescore=True, oversampling=candidates / max(1, limit))
    return engine.SearchParams(quantization=quantization)


def is_engine_error(error: BaseException) -> bool:
    """Return whether it may be the engine's: an Exception, or a Rust panic's PanicException (a BaseException)."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextmanager
def engine_errors(action: str) -> Iterator[None]:
    """Translate the engine's errors to StoreUnavailable."""
    try:
        yield
    except BaseException as error:
        if not is_engine_error(error):
            raise  # KeyboardInterrupt, SystemExit
        raise StoreUnavailable(f"Could not {action}: {type(error).__name__}: {error}") from error


def _discard(shard: EdgeShard, folder: PrivateFolder) -> None:
    try:
        with engine_errors(f"close the shard in {str(folder.path)!r}"):
            shard.close()
    finally:
        folder.remove()
