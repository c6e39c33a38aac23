"""A small HTTP server that responds like Qdrant, using qdrant-client's in-memory engine, and can be made to fail.

It tests that requests have the shape of the client's types, and what happens when a server fails. It can't test how a
real server handles them: set QDRANT_URL for that.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

Fault = Callable[[], int | None]
"""Called before a response is sent. Returns a status to respond with instead, or None."""


class FakeQdrant:
    """The server. fault: makes the next requests fail; requests: those received, as (method, path, body)."""

    def __init__(self) -> None:
        self.engine = QdrantClient(":memory:")
        self.fault: Fault | None = None
        self.headers: dict[str, str] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self.sizes: list[int] = []
        self.indexes: dict[str, dict[str, str]] = {}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def asked(self, method: str, ending: str) -> list[Any]:
        """Return the bodies of the requests with this method whose path has this ending."""
        return [body for verb, path, body in self.requests if verb == method and path.endswith(ending)]

    def answer(self, method: str, path: list[str], body: Any) -> Any:
        match method, path:
            case "GET", ["aliases"]:
                return self.engine.get_aliases()
            case "POST", ["collections", "aliases"]:
                changes = models.ChangeAliasesOperation(**body)
                return self.engine.update_collection_aliases(changes.actions)
            case "GET", ["collections", name, "exists"]:
                return {"exists": self.engine.collection_exists(name)}
            case _, ["collections", name]:
                return self._collection(method, name, body)
            case "PUT", ["collections", name, "index"]:
                self.indexes.setdefault(name, {})[body["field_name"]] = body["field_schema"]
                return _done()
            case "DELETE", ["collections", name, "index", field]:
                self.indexes[name].pop(field, None)
                return _done()
            case _, ["collections", name, *what]:
                return self._points(method, name, what, body)
            case _:
                return {"title": "qdrant", "version": "1.17.0"}

    def _collection(self, method: str, name: str, body: Any) -> Any:
        if method == "PUT":
            wanted = models.CreateCollection(**body)
            self.indexes[name] = {}
            return self.engine.create_collection(name, vectors_config=wanted.vectors, metadata=wanted.metadata)
        if method == "PATCH":
            return self.engine.update_collection(name, metadata=models.UpdateCollection(**body).metadata)
        if method == "DELETE":
            return self.engine.delete_collection(name)
        info = self.engine.get_collection(name).model_dump(mode="json")
        indexes = self.indexes.get(name, {})
        info["payload_schema"] = {key: {"data_type": kind, "points": 0} for key, kind in indexes.items()}
        return info

    def _points(self, method: str, name: str, what: list[str], body: Any) -> Any:
        match method, what:
            case "PUT", ["points"]:
                wanted = models.PointsList(**body)
                return self.engine.upsert(name, wanted.points, update_filter=wanted.update_filter)
            case "POST", ["points"]:
                asked = models.PointRequest(**body)
                return self.engine.retrieve(name, asked.ids, with_payload=True, with_vectors=True)
            case "POST", ["points", "delete"]:
                selector = (
                    models.FilterSelector(**body) if "filter" in body else models.PointIdsList(points=body["points"])
                )
                return self.engine.delete(name, selector)
            case "POST", ["points", "count"]:
                return self.engine.count(name, models.CountRequest(**body).filter)
            case "POST", ["points", "scroll"]:
                scroll = models.ScrollRequest(**body)
                points, following = self.engine.scroll(
                    name,
                    scroll.filter,
                    limit=scroll.limit or 10,
                    order_by=scroll.order_by,
                    offset=scroll.offset,
                    with_payload=True,
                )
                return {"points": [point.model_dump(mode="json") for point in points], "next_page_offset": following}
            case "POST", ["points", "query"]:
                return self._query(name, models.QueryRequest(**body))
            case "POST", ["points", "query", "batch"]:
                return [self._query(name, search) for search in models.QueryRequestBatch(**body).searches]
            case "POST", ["facet"]:
                facet = models.FacetRequest(**body)
                return self.engine.facet(name, facet.key, facet.filter, limit=facet.limit or 10)
        raise ValueError(f"{method} {what}")

    def _query(self, name: str, query: models.QueryRequest) -> Any:
        return self.engine.query_points(
            name,
            query=query.query,
            query_filter=query.filter,
            limit=query.limit or 10,
            score_threshold=query.score_threshold,
        ).model_dump(mode="json")


def _done() -> dict[str, Any]:
    return {"operation_id": 1, "status": "completed"}


def _handler(server: FakeQdrant) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            server.sizes.append(len(sent))
            body = json.loads(sent) if sent else None
            server.requests.append((self.command, path, body))
            if server.fault is not None and (status := server.fault()) is not None:
                self._send(status, {"status": {"error": "it went wrong"}, "time": 0.0})
                return
            try:
                with server.lock:
                    result = server.answer(self.command, path.strip("/").split("/"), body)
            except ValueError as error:  # raised by the engine: no such collection
                self._send(404, {"status": {"error": str(error)}, "time": 0.0})
                return
            if path == "/":
                self._send(200, result)
            else:
                self._send(200, {"result": _plain(result), "status": "ok", "time": 0.0})

        def _send(self, status: int, body: Any) -> None:
            payload = json.dumps(body).encode()
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
