"""The engines that `benchmarks.store` compares. All hold the same points and answer the same queries."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from visual_search.stores.base import Filters, Point, Range
from visual_search.stores.edge import EdgeStore

FIELDS: Any = {"category": "keyword", "price": "number"}
UPDATE = 256  # points written at once
LIMIT = 20


@dataclass(frozen=True, slots=True)
class Data:
    """The points. vectors: contiguous float32 (n, dim), unit length. category, price: one value per row."""

    vectors: np.ndarray
    category: np.ndarray
    price: np.ndarray

    def payload(self, row: int) -> dict[str, Any]:
        return {"category": f"c{self.category[row]}", "price": float(self.price[row])}

    def rows(self, wanted: Wanted) -> np.ndarray:
        """Return a boolean mask of the rows that match."""
        mask = self.category == wanted.category
        return mask & (self.price <= wanted.max_price) if wanted.max_price is not None else mask


@dataclass(frozen=True, slots=True)
class Wanted:
    category: int
    max_price: float | None


class Engine(Protocol):
    takes_filters: bool

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        """Return the rows of the 20 nearest points, best first."""

    def close(self) -> None: ...


class NumpyExact:
    """The baseline: matrix @ vector and argpartition."""

    takes_filters = True

    def __init__(self, data: Data) -> None:
        self.data = data

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        if wanted is None:
            return best_rows(self.data.vectors @ vector).tolist()
        rows = np.flatnonzero(self.data.rows(wanted))
        return rows[best_rows(self.data.vectors[rows] @ vector)].tolist()

    def close(self) -> None: ...


def best_rows(scores: np.ndarray) -> np.ndarray:
    best = np.argpartition(scores, -LIMIT)[-LIMIT:] if len(scores) > LIMIT else np.arange(len(scores))
    return best[np.argsort(-scores[best])]


class OurEdgeStore:
    """The default store, unchanged, through its own class."""

    takes_filters = True

    def __init__(self, data: Data) -> None:
        self.store = EdgeStore(name="benchmark", dim=data.vectors.shape[1], fields=FIELDS)
        for start in range(0, len(data.vectors), 1000):
            rows = range(start, min(start + 1000, len(data.vectors)))
            self.store.upsert(
                [
                    Point(str(uuid.UUID(int=row)), data.vectors[row], str(row), "", True, row, data.payload(row))
                    for row in rows
                ]
            )

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        return [int(hit.product) for hit in self.store.query(vector, filters_of(wanted), limit=LIMIT)]

    def close(self) -> None:
        self.store.close()


def filters_of(wanted: Wanted | None) -> Filters:
    if wanted is None:
        return Filters()
    ranges = {} if wanted.max_price is None else {"price": Range(maximum=wanted.max_price)}
    return Filters(any_of={"category": (f"c{wanted.category}",)}, ranges=ranges)


class BareEdge:
    """A shard of the same engine, used directly, with one of its index types."""

    takes_filters = True

    def __init__(self, data: Data, *, kind: str, threads: int = 1) -> None:
        import qdrant_edge as engine

        self.engine, self.kind = engine, kind
        int8 = engine.ScalarQuantizationConfig(engine.ScalarType.Int8, quantile=0.99, memory=engine.Memory.Pinned)
        codes = engine.TurboQuantQuantizationConfig(bits=engine.TurboQuantBitSize.Bits4, memory=engine.Memory.Pinned)
        config = engine.EdgeConfig(
            vectors=engine.EdgeVectorParams(size=data.vectors.shape[1], distance=engine.Distance.Cosine),
            hnsw_config=engine.HnswIndexConfig(
                m=16 if kind == "hnsw" else 0,
                ef_construct=128,
                full_scan_threshold=10_000,
                max_indexing_threads=threads,
            ),
            quantization_config={"exact": None, "codes": codes}.get(kind, int8),
            optimizers=engine.EdgeOptimizersConfig(
                indexing_threshold=1000, default_segment_number=1, max_segment_size=100_000_000
            ),
            max_search_threads=1,
            wal_enabled=False,
        )
        self.folder = tempfile.mkdtemp(prefix="visual-search-benchmark-")
        self.shard = engine.EdgeShard.create(f"{self.folder}/shard", config)
        for field, schema in (("category", "Keyword"), ("price", "Float")):
            schema = getattr(engine.PayloadSchemaType, schema)
            self.shard.update(engine.UpdateOperation.create_field_index(field, schema))
        for start in range(0, len(data.vectors), UPDATE):
            rows = range(start, min(start + UPDATE, len(data.vectors)))
            points = [engine.Point(row, data.vectors[row].tolist(), data.payload(row)) for row in rows]
            self.shard.update(engine.UpdateOperation.upsert_points(points))
        if kind in ("int8", "hnsw"):
            self.shard.optimize()

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        engine, conditions = self.engine, []
        if wanted is not None:
            category = engine.MatchAny(any=[f"c{wanted.category}"])
            conditions.append(engine.FieldCondition(key="category", match=category))
            if wanted.max_price is not None:
                conditions.append(engine.FieldCondition(key="price", range=engine.RangeFloat(lte=wanted.max_price)))
        quantization = engine.QuantizationSearchParams(rescore=True, oversampling=2.0)
        request = engine.QueryRequest(
            limit=LIMIT,
            query=engine.Query.Nearest(vector.tolist()),
            filter=engine.Filter(must=conditions) if conditions else None,
            params=engine.SearchParams(hnsw_ef=128, quantization=None if self.kind == "exact" else quantization),
        )
        return [int(hit.id) for hit in self.shard.query(request)]

    def close(self) -> None:
        self.shard.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class QdrantLocal:
    """qdrant-client's local mode, which is meant for tests and says nothing about the server."""

    takes_filters = True

    def __init__(self, data: Data) -> None:
        from qdrant_client import QdrantClient, models

        self.models, self.client = models, QdrantClient(":memory:")
        params = models.VectorParams(size=data.vectors.shape[1], distance=models.Distance.COSINE)
        self.client.create_collection("benchmark", vectors_config=params)
        for start in range(0, len(data.vectors), UPDATE):
            rows = range(start, min(start + UPDATE, len(data.vectors)))
            points = [models.PointStruct(id=n, vector=data.vectors[n].tolist(), payload=data.payload(n)) for n in rows]
            self.client.upsert("benchmark", points)

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        models, conditions = self.models, []
        if wanted is not None:
            category = models.MatchAny(any=[f"c{wanted.category}"])
            conditions.append(models.FieldCondition(key="category", match=category))
            if wanted.max_price is not None:
                conditions.append(models.FieldCondition(key="price", range=models.Range(lte=wanted.max_price)))
        found = self.client.query_points(
            "benchmark",
            query=vector,
            limit=LIMIT,
            query_filter=models.Filter(must=conditions) if conditions else None,
            with_payload=False,
        )
        return [int(point.id) for point in found.points]

    def close(self) -> None:
        self.client.close()


class FaissHnsw:
    takes_filters = True

    def __init__(self, data: Data) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        self.data, self.faiss = data, faiss
        self.index = faiss.IndexHNSWFlat(data.vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = 128
        self.index.add(data.vectors)

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        params = self.faiss.SearchParametersHNSW(efSearch=128)
        if wanted is not None:
            bits = np.packbits(self.data.rows(wanted), bitorder="little")
            params.sel = self.faiss.IDSelectorBitmap(bits)
        _, found = self.index.search(vector[None], LIMIT, params=params)
        return [int(row) for row in found[0] if row >= 0]

    def close(self) -> None: ...


class UsearchHnsw:
    """usearch with float16. Its Python API has no filters."""

    takes_filters = False

    def __init__(self, data: Data) -> None:
        from usearch.index import Index

        self.index = Index(
            ndim=data.vectors.shape[1],
            metric="ip",
            dtype="f16",
            connectivity=16,
            expansion_add=128,
            expansion_search=128,
        )
        self.index.add(np.arange(len(data.vectors)), data.vectors, threads=1)

    def query(self, vector: np.ndarray, wanted: Wanted | None) -> list[int]:
        return [int(row) for row in self.index.search(vector, LIMIT, threads=1).keys]

    def close(self) -> None: ...


def engines(threads: int) -> dict[str, Callable[[Data], Engine]]:
    """Return the engines by name. threads: for building an HNSW index; queries use one."""
    return {
        "edge": OurEdgeStore,
        "edge_int8": lambda data: BareEdge(data, kind="int8"),
        "edge_hnsw": lambda data: BareEdge(data, kind="hnsw", threads=threads),
        "qdrant_local": QdrantLocal,
        "faiss_hnsw": FaissHnsw,
        "usearch_hnsw": UsearchHnsw,
        # Only on request: the two modes of the default store.
        "edge_exact": lambda data: BareEdge(data, kind="exact"),
        "edge_codes": lambda data: BareEdge(data, kind="codes"),
    }
