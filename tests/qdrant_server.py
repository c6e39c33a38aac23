"""A small HTTP server that answers as Qdrant does, from qdrant-client's own engine in memory, and can be made to fail.

It shows that requests are shaped as the client's types say, and what happens when a server fails. Where a real one
answers otherwise stands in tests/stores/test_recorded_server.py; set QDRANT_URL to run the stores' tests on one.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from qdrant_client import QdrantClient, models

from tests import qdrant_config
from tests.qdrant_refusals import (
    FACET_INDEXES,
    ORDER_INDEXES,
    Refused,
    check_ids,
    check_index,
    check_strictly,
    status_of,
)

Fault = Callable[[], int | None]
"""Called before a request is answered. Returns a status to answer with instead, or None."""


class FakeQdrant:
    """fault: what goes wrong with the next requests; requests: what was asked, (method, path, body).

    indexes, configs: the payload indexes of each collection, and its options as `GET /collections/<name>` shows them.
    """

    def __init__(self) -> None:
        self.engine = QdrantClient(":memory:")
        self.fault: Fault | None = None
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.sizes: list[int] = []
        self.indexes: dict[str, dict[str, str]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str, ending: str) -> list[Any]:
        """Return the bodies of requests whose path ends so."""
        return [body for verb, path, body in self.requests if verb == method and path.endswith(ending)]

    def answer(self, method: str, path: list[str], body: Any, *, timeout: int = 0) -> Any:
        """Return the result. Raises Refused or ValueError, of the engine or of a type, where a server refuses."""
        match method, path:
            case "GET", [""]:
                return {"title": "qdrant - vector search engine", "version": "1.18.3"}
            case "GET", ["readyz"]:
                return "all shards are ready"
            case "GET", ["aliases"]:
                return self.engine.get_aliases()
            case "GET", ["collections"]:
                return self.engine.get_collections()
            case "POST", ["collections", "aliases"]:
                changes = models.ChangeAliasesOperation(**body)
                return self.engine.update_collection_aliases(changes.actions)
            case "GET", ["collections", name, "exists"]:
                return {"exists": self.engine.collection_exists(name)}
            case _, ["collections", name]:
                return self._collection(method, name, body)
            case "PUT", ["collections", name, "index"]:
                self._indexes(name)[body["field_name"]] = body["field_schema"]
                return _done()
            case "DELETE", ["collections", name, "index", field]:
                self._indexes(name).pop(field, None)
                return _done()
            case "POST" | "PUT", ["collections", name, *what]:
                strict = self.configs.get(self._named(name), {}).get("strict_mode_config", {})
                check_strictly(strict, body, self.indexes.get(self._named(name), {}), timeout=timeout)
                return self._points(method, name, what, body)
        raise Refused(404, "")

    def _named(self, name: str) -> str:
        """Return the collection that an alias names; any other name as it is."""
        aliases = {alias.alias_name: alias.collection_name for alias in self.engine.get_aliases().aliases}
        return str(aliases.get(name, name))

    def _indexes(self, name: str) -> dict[str, str]:
        self.engine.get_collection(name)  # raises ValueError where it is missing
        return self.indexes[self._named(name)]

    def _collection(self, method: str, name: str, body: Any) -> Any:
        if method == "PUT":
            wanted = models.CreateCollection(**body)
            made = self.engine.create_collection(name, vectors_config=wanted.vectors, metadata=wanted.metadata)
            self.indexes[name], self.configs[name] = {}, qdrant_config.made_with(body)
            return made
        if method == "PATCH":
            self.engine.update_collection(name, metadata=models.UpdateCollection(**body).metadata)
            qdrant_config.change(self.configs[self._named(name)], body)
            return True
        if method == "DELETE":
            return self.engine.delete_collection(name)
        info = self.engine.get_collection(name)
        kept = {"metadata": info.config.metadata} if info.config.metadata else {}
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": 0,
            "points_count": info.points_count,
            "segments_count": 2,
            "config": copy.deepcopy(self.configs[self._named(name)] | kept),
            "payload_schema": {key: {"data_type": kind, "points": 0} for key, kind in self._indexes(name).items()},
            "update_queue": {"length": 0},
        }

    def _points(self, method: str, name: str, what: list[str], body: Any) -> Any:
        match method, what:
            case "PUT", ["points"]:
                wanted = models.PointsList(**body)
                check_ids(*(point.id for point in wanted.points))
                return self.engine.upsert(name, wanted.points, update_filter=wanted.update_filter)
            case "POST", ["points"]:
                asked = models.PointRequest(**body)
                check_ids(*asked.ids)
                points = self.engine.retrieve(name, asked.ids, **_selected(asked, with_payload=True))
                return [_without_nulls(point) for point in points]
            case "POST", ["points", "delete"]:
                selector = (
                    models.FilterSelector(**body) if "filter" in body else models.PointIdsList(points=body["points"])
                )
                return self.engine.delete(name, selector)
            case "POST", ["points", "count"]:
                return self.engine.count(name, models.CountRequest(**body).filter)
            case "POST", ["points", "scroll"]:
                return self._scroll(name, models.ScrollRequest(**body))
            case "POST", ["points", "query"]:
                return self._query(name, models.QueryRequest(**body))
            case "POST", ["points", "query", "batch"]:
                return [self._query(name, search) for search in models.QueryRequestBatch(**body).searches]
            case "POST", ["facet"]:
                facet = models.FacetRequest(**body)
                check_index(facet.key, FACET_INDEXES, self._indexes(name))
                return self.engine.facet(name, facet.key, facet.filter, limit=_limit(facet))
        raise Refused(404, "")

    def _scroll(self, name: str, scroll: models.ScrollRequest) -> Any:
        if isinstance(scroll.order_by, models.OrderBy):
            check_index(scroll.order_by.key, ORDER_INDEXES, self._indexes(name))
        points, following = self.engine.scroll(
            name,
            scroll.filter,
            limit=_limit(scroll),
            order_by=scroll.order_by,
            offset=scroll.offset,
            **_selected(scroll, with_payload=True),
        )
        return {"points": [_without_nulls(point) for point in points], "next_page_offset": following}

    def _query(self, name: str, query: models.QueryRequest) -> Any:
        if isinstance(query.query, str | int):
            check_ids(query.query)
        found = self.engine.query_points(
            name,
            query=query.query,
            query_filter=query.filter,
            limit=_limit(query),
            offset=query.offset,
            **_selected(query, with_payload=False),
        ).points
        for point in found:
            point.score = float(np.float32(point.score))
        least = -np.inf if query.score_threshold is None else np.float32(query.score_threshold)
        return {"points": [_without_nulls(point) for point in found if point.score > least]}


def _limit(asked: Any) -> int:
    return 10 if asked.limit is None else int(asked.limit)


def _selected(asked: Any, *, with_payload: bool) -> dict[str, Any]:
    """Return what is wanted of each point. with_payload: of a request that doesn't say."""
    payload = with_payload if asked.with_payload is None else asked.with_payload
    return {"with_payload": payload, "with_vectors": asked.with_vector or False}


def _without_nulls(point: Any) -> dict[str, Any]:
    """Return the point as a server writes it: what was not asked for is missing; a payload's own nulls stay."""
    return {name: value for name, value in point.model_dump(mode="json").items() if value is not None}


def _done() -> dict[str, Any]:
    return {"operation_id": 1, "status": "completed"}


def _handler(server: FakeQdrant) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = urlsplit(self.path)
            path = address.path
            server.sizes.append(len(sent))
            body = json.loads(sent) if sent else None
            server.requests.append((self.command, path, body))
            if server.fault is not None and (status := server.fault()) is not None:
                self._send(status, {"status": {"error": "it went wrong"}, "time": 0.0})
                return
            try:
                with server.lock:
                    names = [unquote(part) for part in path.strip("/").split("/")]
                    timeout = int(parse_qs(address.query).get("timeout", ["0"])[0])
                    result = server.answer(self.command, names, body, timeout=timeout)
            except (Refused, ValueError) as error:
                reason = {"status": {"error": str(error)}, "time": 0.0} if str(error) else ""
                self._send(status_of(error), reason)
                return
            if path in ("/", "/readyz"):
                self._send(200, result)
            else:
                self._send(200, {"result": _plain(result), "status": "ok", "time": 0.0})

        def _send(self, status: int, body: Any) -> None:
            payload = (body if isinstance(body, str) else json.dumps(body)).encode()
            try:
                self.send_response(status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except OSError:  # the client has given up
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    return Handler


def _plain(result: Any) -> Any:
    if isinstance(result, list):
        return [_plain(each) for each in result]
    return result.model_dump(mode="json") if hasattr(result, "model_dump") else result
