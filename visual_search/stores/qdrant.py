"""The store on a Qdrant server or cluster: one collection that all processes share, fed by the worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from visual_search.exceptions import ConfigurationError, StoreUnavailable
from visual_search.stores import mapping
from visual_search.stores.base import FieldKind, Filters, Hit, Point, Position, Range, check_vectors
from visual_search.stores.collection import Collection
from visual_search.stores.connection import Connection, engine_models
from visual_search.stores.tuning import OptionGroup, Tuning

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_client import QdrantClient

T = TypeVar("T")

POINTS_PER_REQUEST = 200  # Qdrant's advice is 100 to 256
QUERIES_PER_REQUEST = 100
BYTES_PER_REQUEST = 5_000_000
BYTES_PER_NUMBER = 24  # the longest float32 as JSON


class QdrantStore:
    """One collection of a Qdrant server, version 1.16 or newer. docs/qdrant.md describes what happens on failures."""

    is_shared = True

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        fields: Mapping[str, FieldKind],
        url: str | None = None,
        api_key: str | None = None,
        prefer_grpc: bool = False,
        grpc_port: int = 6334,
        timeout: int = 5,
        write_timeout: int = 30,
        retries: int = 2,
        backoff_seconds: float = 0.2,
        max_limit: int = 10_000,
        vectors: OptionGroup | None = None,
        quantization: OptionGroup | Literal[False] | None = None,
        hnsw: OptionGroup | None = None,
        search: OptionGroup | None = None,
        optimizers: OptionGroup | None = None,
        cluster: OptionGroup | None = None,
        location: str | None = None,
        client: QdrantClient | None = None,
    ) -> None:
        """timeout: seconds for a request that a shopper waits for. write_timeout: seconds for any other request.

        retries: retries after a transient error, after backoff_seconds, twice that, and so on.
        max_limit: maximum number of points per query; keep it below strict mode's max_query_limit.
        vectors … cluster: see tuning.DEFAULTS; quantization=False stores only full vectors.
        location: ":memory:" for tests, instead of a url. client: such a client, shared by several stores.
        """
        if not (url or location or client):
            raise ConfigurationError("QdrantStore needs a 'url', for example 'http://localhost:6333'.")
        for option, seconds in {"timeout": timeout, "write_timeout": write_timeout}.items():
            if not isinstance(seconds, int) or seconds < 1:  # Qdrant takes whole seconds
                raise ConfigurationError(f"The store's {option!r} is {seconds!r}; expected whole seconds, at least 1.")
        self.name = name
        self.dim = dim
        self.fields = dict(fields)
        self.tuning = Tuning(
            vectors=vectors, quantization=quantization, hnsw=hnsw, search=search, optimizers=optimizers, cluster=cluster
        )
        self._timeout, self._write_timeout, self._max_limit = timeout, write_timeout, max_limit
        self._is_local = not url
        options: dict[str, Any] = {"location": location}
        if url:
            options = {
                "url": url,
                "api_key": api_key.strip() if api_key else None,  # a key read from a file ends with a line break
                "timeout": timeout,
                "prefer_grpc": prefer_grpc,
                "grpc_port": grpc_port,
                "check_compatibility": False,  # it starts a thread per client, and warns whenever the server is down
            }
        self._connection = Connection(
            options,
            place=_without_password(url) if url else "local mode",
            is_local=self._is_local,
            client=client,
            retries=retries,
            backoff_seconds=backoff_seconds,
        )
        self._collection = Collection(
            name,
            dim,
            fields=fields,
            tuning=self.tuning,
            connection=self._connection,
            timeout=timeout,
            write_timeout=write_timeout,
        )

    # The collection

    @property
    def place(self) -> str:
        return self._collection.place

    def ensure(self) -> None:
        self._collection.ensure()

    def reset(self) -> None:
        self._collection.reset()

    def drop(self) -> None:
        self._collection.drop()

    def close(self) -> None:
        self._connection.close()

    def point_alias(self, alias: str) -> None:
        self._collection.point_alias(alias)

    def position(self) -> Position | None:
        return self._collection.position()

    def set_position(self, position: Position) -> None:
        self._collection.set_position(position)

    # Points

    def upsert(self, points: Sequence[Point]) -> None:
        if not points:
            return
        rows = mapping.checked_rows(points, self.dim)
        for batch in self._request_slices(points):
            self._upsert(points[batch], rows[batch])

    def _upsert(self, points: Sequence[Point], rows: NDArray[np.float32]) -> None:
        models = engine_models()
        structs = [
            models.PointStruct(id=point.id, vector=row.tolist(), payload=mapping.to_payload(point))
            for point, row in zip(points, rows, strict=True)
        ]
        # Keep stored points that are newer than the whole batch: this writer may have been paused.
        not_newer = models.Filter(must=[_not_newer_than(max(point.seq for point in points))])
        self._apply_write(
            "write to",
            lambda client, options: client.upsert(self.name, structs, wait=True, update_filter=not_newer, **options),
        )

    def delete(self, ids: Sequence[str]) -> None:
        self._delete(ids, conditions=[])

    def delete_up_to(self, ids: Sequence[str], *, seq: int) -> None:
        self._delete(ids, conditions=[_not_newer_than(seq)])

    def _delete(self, ids: Sequence[str], *, conditions: list[Any]) -> None:
        models = engine_models()
        selectors = [
            models.FilterSelector(filter=models.Filter(must=[models.HasIdCondition(has_id=list(batch)), *conditions]))
            if conditions
            else models.PointIdsList(points=list(batch))
            for batch in _batched(ids, POINTS_PER_REQUEST)
        ]
        for selector in selectors:
            self._delete_selected(selector)

    def _delete_selected(self, selector: Any) -> None:
        self._apply_write(
            "delete from",
            lambda client, options: client.delete(self.name, points_selector=selector, wait=True, **options),
        )

    def query(
        self, vector: NDArray[np.float32], filters: Filters, *, limit: int, score_threshold: float | None = None
    ) -> list[Hit]:
        row = check_vectors(vector, self.dim)[0]
        if limit < 1:
            return []
        answer = self._collection.read(
            "query",
            lambda client: client.query_points(
                self.name,
                query=row.tolist(),
                query_filter=_engine_filter(filters),
                search_params=self._search_params(),
                limit=min(limit, self._max_limit),
                score_threshold=mapping.exclusive_threshold(score_threshold),
                with_payload=mapping.HIT_KEYS,
                timeout=self._timeout,
            ),
        )
        return [mapping.to_hit(point) for point in answer.points]

    def query_batch(self, vectors: NDArray[np.float32], filters: Filters, *, limit: int) -> list[list[Hit]]:
        rows = check_vectors(vectors, self.dim)
        if limit < 1 or not len(rows):
            return [[] for _ in rows]
        models = engine_models()
        requests = [
            models.QueryRequest(
                query=row.tolist(),
                filter=_engine_filter(filters),
                params=self._search_params(),
                limit=min(limit, self._max_limit),
                with_payload=mapping.HIT_KEYS,
            )
            for row in rows
        ]
        batches = _batched(requests, QUERIES_PER_REQUEST)
        answers = [answer for batch in batches for answer in self._query_requests(batch)]
        return [[mapping.to_hit(point) for point in answer.points] for answer in answers]

    def _query_requests(self, requests: Sequence[Any]) -> list[Any]:
        return self._collection.read(
            "query", lambda client: client.query_batch_points(self.name, requests=requests, timeout=self._timeout)
        )

    def retrieve(self, ids: Sequence[str]) -> list[Point]:
        batches = _batched(ids, POINTS_PER_REQUEST)
        return [mapping.to_point(record) for batch in batches for record in self._retrieve_batch(batch)]

    def _retrieve_batch(self, ids: Sequence[str]) -> list[Any]:
        return self._collection.read(
            "read from",
            lambda client: client.retrieve(
                self.name, list(ids), with_payload=True, with_vectors=True, timeout=self._timeout
            ),
        )

    def scroll(self, *, batch: int = 1000) -> Iterator[tuple[str, int]]:
        start: str | None = None
        while True:
            page, start = self.scroll_slice(start, limit=batch)
            yield from page
            if start is None:
                return

    def scroll_slice(self, start: str | None, *, limit: int) -> tuple[list[tuple[str, int]], str | None]:
        records, following = self._collection.read(
            "read from",
            lambda client: client.scroll(
                self.name,
                limit=limit,
                offset=start,
                with_payload=[mapping.SEQ],
                with_vectors=False,
                timeout=self._timeout,
            ),
        )
        page = [(str(record.id), int((record.payload or {}).get(mapping.SEQ, 0))) for record in records]
        return page, None if following is None else str(following)

    def count(self, filters: Filters | None = None) -> int:
        counted = self._collection.read(
            "count in",
            lambda client: client.count(
                self.name, count_filter=_engine_filter(filters), exact=True, timeout=self._timeout
            ),
        )
        return counted.count

    def facet(self, name: str, filters: Filters, *, limit: int = 50) -> dict[str | bool, int]:
        counted: Any = self._collection.read(
            "count values in",
            lambda client: client.facet(
                self.name,
                key=name,
                facet_filter=_engine_filter(filters),
                limit=limit,
                exact=True,
                timeout=self._timeout,
            ),
        )
        return {hit.value: hit.count for hit in counted.hits}

    def bounds(self, name: str, filters: Filters) -> Range | None:
        direction = engine_models().Direction
        lowest = self._first_value(name, filters, direction.ASC)
        highest = self._first_value(name, filters, direction.DESC)
        return None if lowest is None or highest is None else Range(lowest, highest)

    def _first_value(self, name: str, filters: Filters, direction: Any) -> float | None:
        records, _ = self._collection.read(
            "find the bounds in",
            lambda client: client.scroll(
                self.name,
                scroll_filter=_engine_filter(filters),
                order_by=engine_models().OrderBy(key=name, direction=direction),
                limit=1,
                with_payload=[name],
                with_vectors=False,
                timeout=self._timeout,
            ),
        )
        return float(records[0].order_value) if records else None  # type: ignore[arg-type]

    def health(self) -> dict[str, Any]:
        def describe(client: QdrantClient) -> dict[str, Any]:
            info = client.get_collection(self.name)
            return {
                "engine": f"qdrant {client.info().version}",
                "place": self.place,
                "status": info.status.value,
                "points": info.points_count,
                "missing_indexes": [] if self._is_local else list(self._collection.wrong_indexes(info)),
            }

        return self._collection.read("inspect", describe)

    def _apply_write(self, action: str, work: Callable[[QdrantClient, dict[str, Any]], Any]) -> None:
        """Write or delete points. Raises StoreUnavailable too if the server accepts the write but does not apply it."""
        options = {"timeout": self._write_timeout, "ordering": self.tuning.ordering()}
        result = self._collection.write(action, lambda client: work(client, options))
        if result.status.value == "wait_timeout":
            raise StoreUnavailable(
                f"Collection {self.name!r} at {self.place} accepted a write, but did not apply it within "
                f"{self._write_timeout} s: check its load, or raise the store's 'write_timeout'."
            )

    def _search_params(self) -> Any:
        return None if self._is_local else self.tuning.search_params()  # local mode is exact, and warns

    def _request_slices(self, points: Sequence[Point]) -> Iterator[slice]:
        start = size = 0
        for end, point in enumerate(points):
            point_bytes = self.dim * BYTES_PER_NUMBER + len(json.dumps(mapping.to_payload(point)))
            if end > start and (end - start == POINTS_PER_REQUEST or size + point_bytes > BYTES_PER_REQUEST):
                yield slice(start, end)
                start, size = end, 0
            size += point_bytes
        yield slice(start, len(points))


def _not_newer_than(seq: int) -> Any:
    """Return the condition that a point is not newer than `seq`."""
    models = engine_models()
    return models.FieldCondition(key=mapping.SEQ, range=models.Range(lte=seq))


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _engine_filter(filters: Filters | None) -> Any:
    models = engine_models()
    return mapping.to_engine_filter(filters, models, models.Range, bool) if filters else None


def _without_password(url: str) -> str:
    return urlsplit(url)._replace(netloc=urlsplit(url).netloc.rpartition("@")[2]).geturl()
