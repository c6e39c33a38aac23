"""A Qdrant server or cluster: one collection that all processes share, fed by the worker."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from visual_search.exceptions import ConfigurationError, DimensionMismatch, StoreUnavailable, VisualSearchError
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, check_vectors
from visual_search.stores.process import never_destroy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_client import QdrantClient

POINTS_PER_REQUEST = 200  # Qdrant's advice is 100 to 256
BYTES_PER_REQUEST = 5_000_000
BYTES_PER_NUMBER = 24  # the longest float32 as JSON
IDS_PER_REQUEST = 1000
METADATA_KEY = "visual_search"


class QdrantStore:
    """One collection of a Qdrant server from 1.16 on."""

    is_shared = True

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        fields: Mapping[str, FieldKind],
        url: str | None = None,
        api_key: str | None = None,
        timeout: int = 5,
        prefer_grpc: bool = False,
        location: str | None = None,
        client: QdrantClient | None = None,
    ) -> None:
        """timeout: seconds for one request.

        location: ":memory:" for tests, in place of a url. client: one such client, for several stores.
        """
        if not (url or location or client):
            raise ConfigurationError("QdrantStore needs a 'url', for example 'http://localhost:6333'.")
        self.name = name
        self.dim = dim
        self.fields = dict(fields)
        self.place = _without_password(url) if url else "local mode"
        self._api_key = api_key.strip() if api_key else None  # a key read from a file ends in a line break
        self._is_local = not url
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._client = self._given_client = client
        self._options: dict[str, Any] = {"location": location}
        if url:
            self._options = {
                "url": url,
                "api_key": self._api_key,
                "timeout": timeout,
                "prefer_grpc": prefer_grpc,
                "check_compatibility": False,  # a thread per client, and a warning whenever the server is away
            }

    def ensure(self) -> None:
        with self._calling("open") as client:
            if not client.collection_exists(self.name):
                self._create(client)
            info = client.get_collection(self.name)
            stored = getattr(info.config.params.vectors, "size", None)
            if stored != self.dim:
                raise DimensionMismatch(
                    f"Collection {self.name!r} at {self.place} holds {stored}-dimensional vectors; "
                    f"{self.dim} dimensions were wanted. Run `manage.py reset_index`."
                )
            self._create_indexes(client, {key: index.data_type.value for key, index in info.payload_schema.items()})

    def reset(self) -> None:
        with self._calling("reset") as client:
            client.delete_collection(self.name)
            self._create(client)
            self._create_indexes(client, {})

    def drop(self) -> None:
        with self._calling("delete") as client:
            if client.collection_exists(self.name):
                client.delete_collection(self.name)

    def close(self) -> None:
        if self._client is not self._given_client:
            with self._calling("close") as client:
                self._client = None
                client.close()

    def upsert(self, points: Sequence[Point]) -> None:
        if not points:
            return
        rows = mapping.checked_rows(points, self.dim)
        with self._calling("write to") as client:
            from qdrant_client import models

            for batch in self._batches(points):
                # A stored point that is newer than the whole batch stays: the writer was paused in between.
                older = models.Range(lte=max(point.seq for point in points[batch]))
                client.upsert(
                    self.name,
                    [
                        models.PointStruct(id=point.id, vector=row.tolist(), payload=mapping.to_payload(point))
                        for point, row in zip(points[batch], rows[batch], strict=True)
                    ],
                    wait=True,
                    update_filter=models.Filter(must=[models.FieldCondition(key=mapping.SEQ, range=older)]),
                )

    def delete(self, ids: Sequence[str]) -> None:
        with self._calling("delete from") as client:
            from qdrant_client import models

            for start in range(0, len(ids), IDS_PER_REQUEST):
                some = models.PointIdsList(points=list(ids[start : start + IDS_PER_REQUEST]))
                client.delete(self.name, points_selector=some, wait=True)

    def query(
        self, vector: NDArray[np.float32], filters: Filters, *, limit: int, score_threshold: float | None = None
    ) -> list[Hit]:
        row = check_vectors(vector, self.dim)[0]
        if limit < 1:
            return []
        with self._calling("query") as client:
            answer = client.query_points(
                self.name,
                query=row.tolist(),
                query_filter=_engine_filter(filters),
                limit=limit,
                score_threshold=mapping.exclusive_threshold(score_threshold),
                with_payload=mapping.HIT_KEYS,
            )
            return [mapping.to_hit(point) for point in answer.points]

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        rows = check_vectors(vectors, self.dim)
        if limit < 1 or not len(rows):
            return [[] for _ in rows]
        with self._calling("query") as client:
            from qdrant_client import models

            requests = [
                models.QueryRequest(
                    query=row.tolist(), filter=_engine_filter(filters), limit=limit, with_payload=mapping.HIT_KEYS
                )
                for row in rows
            ]
            answers = client.query_batch_points(self.name, requests=requests)
            return [[mapping.to_hit(point) for point in answer.points] for answer in answers]

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        points: list[Point] = []
        with self._calling("read from") as client:
            for start in range(0, len(ids), POINTS_PER_REQUEST):
                some = list(ids[start : start + POINTS_PER_REQUEST])
                records = client.retrieve(self.name, some, with_payload=True, with_vectors=True)
                points += [mapping.to_point(record) for record in records]
        return points

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        offset: Any = None
        while True:
            with self._calling("read from") as client:
                records, offset = client.scroll(
                    self.name, limit=batch, offset=offset, with_payload=[mapping.SEQ], with_vectors=False
                )
                page = [(str(record.id), int((record.payload or {})[mapping.SEQ])) for record in records]
            yield from page
            if offset is None:
                return

    def count(self, filters: Filters | None = None) -> int:
        with self._calling("count in") as client:
            return client.count(self.name, count_filter=_engine_filter(filters), exact=True).count

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        with self._calling("count values in") as client:
            counted: Any = client.facet(
                self.name, key=name, facet_filter=_engine_filter(filters), limit=limit, exact=True
            )
            return {hit.value: hit.count for hit in counted.hits}

    def bounds(self, name: str, filters: Filters) -> Range | None:
        with self._calling("find the bounds in") as client:
            from qdrant_client import models

            ends: list[float] = []
            for direction in (models.Direction.ASC, models.Direction.DESC):
                records, _ = client.scroll(
                    self.name,
                    scroll_filter=_engine_filter(filters),
                    order_by=models.OrderBy(key=name, direction=direction),
                    limit=1,
                    with_payload=[name],
                    with_vectors=False,
                )
                ends += [float(record.order_value) for record in records]  # type: ignore[arg-type]
            return Range(*ends) if ends else None

    def health(self) -> dict[str, Any]:
        with self._calling("look at") as client:
            info = client.get_collection(self.name)
            return {
                "engine": f"qdrant {client.info().version}",
                "place": self.place,
                "status": info.status.value,
                "points": info.points_count,
            }

    def position(self) -> Position | None:
        with self._calling("read the position of") as client:
            if not client.collection_exists(self.name):
                return None
            kept = (client.get_collection(self.name).config.metadata or {}).get(METADATA_KEY)
            return Position(str(kept["epoch"]), int(kept["seq"])) if kept else None

    def set_position(self, position: Position) -> None:
        with self._calling("write the position of") as client:
            kept = {"epoch": position.epoch, "seq": position.seq}
            client.update_collection(self.name, metadata={METADATA_KEY: kept})

    def _create(self, client: QdrantClient) -> None:
        from qdrant_client import models

        vectors = models.VectorParams(size=self.dim, distance=models.Distance.COSINE)
        try:
            client.create_collection(self.name, vectors_config=vectors)
        except Exception:
            if not client.collection_exists(self.name):  # otherwise another process was faster
                raise

    def _create_indexes(self, client: QdrantClient, existing: Mapping[str, str]) -> None:
        """Create what is missing, before the first point: on a full collection it takes long."""
        if self._is_local:
            return  # local mode has none, and warns
        from qdrant_client import models

        wanted = {mapping.SEQ: "integer", **mapping.payload_indexes(self.fields)}
        for key, index_type in wanted.items():
            if existing.get(key) != index_type:
                client.create_payload_index(self.name, key, models.PayloadSchemaType(index_type), wait=True)

    def _batches(self, points: Sequence[Point]) -> Iterator[slice]:
        start = size = 0
        for end, point in enumerate(points):
            more = self.dim * BYTES_PER_NUMBER + len(json.dumps(mapping.to_payload(point)))
            if end > start and (end - start == POINTS_PER_REQUEST or size + more > BYTES_PER_REQUEST):
                yield slice(start, end)
                start, size = end, 0
            size += more
        yield slice(start, len(points))

    @contextmanager
    def _calling(self, attempt: str) -> Iterator[QdrantClient]:
        """Give the client of this process; raise StoreUnavailable for whatever it raises."""
        if self._pid != os.getpid():
            if self._client is not self._given_client:
                never_destroy(self._client)  # its connections are the parent's
            self._pid, self._lock, self._client = os.getpid(), threading.RLock(), self._given_client
        with self._lock if self._is_local else nullcontext():  # local mode is not thread-safe
            try:
                if self._client is None:
                    self._client = self._connect()
                yield self._client
            except VisualSearchError:
                raise
            except Exception as error:  # of httpx, gRPC, pydantic or local mode: they have no base in common
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                if self._api_key:
                    reason = reason.replace(self._api_key, "***")
                raise StoreUnavailable(
                    f"Could not {attempt} collection {self.name!r} at {self.place}: {reason}"
                ) from error

    def _connect(self) -> QdrantClient:
        try:
            import numpy  # noqa: F401
            from qdrant_client import QdrantClient
        except ImportError as error:
            raise ConfigurationError(
                f"QdrantStore needs {error.name!r}, which is not installed. "
                'Run `pip install "django-visual-search[qdrant]"`.'
            ) from error
        return QdrantClient(**self._options)


def _engine_filter(filters: Filters | None) -> Any:
    from qdrant_client import models

    return mapping.to_engine_filter(filters, models, models.Range, bool) if filters else None


def _without_password(url: str) -> str:
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
