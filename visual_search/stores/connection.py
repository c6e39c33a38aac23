"""The way to a Qdrant server: one client a process, calls that are tried again, errors that say what to do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from visual_search.exceptions import ConfigurationError, StoreUnavailable, VisualSearchError
from visual_search.stores.process import never_destroy

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")

MAX_WAIT_SECONDS = 10.0  # between two attempts, whatever the server's Retry-After says
PASSING_GRPC_CODES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN"}


class Connection:
    """The client is built at the first call in a process, so never before a fork.

    place: what errors call the server. client: one that was built elsewhere, never closed here.
    is_local: qdrant-client's own engine in this process, which is not thread-safe.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        place: str,
        is_local: bool,
        client: QdrantClient | None,
        retries: int,
        backoff_seconds: float,
    ) -> None:
        self.place = place
        self.is_local = is_local
        self._options = dict(options)
        self._retries, self._backoff_seconds = retries, backoff_seconds
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._client = self._given_client = client

    def call(self, attempt: str, work: Callable[[QdrantClient], T], *, patience_seconds: float) -> T:
        """Return what `work` does with the client; what may pass is tried again, each time after a longer wait.

        attempt: for the error, "query collection 'shop_v1'". patience_seconds: no attempt begins later than this after
        the first one, so a shopper does not wait for one time-out after another.
        Raises StoreUnavailable for whatever the client raises.
        """
        self._leave_to_parent()
        deadline = time.monotonic() + patience_seconds
        with self._lock if self.is_local else nullcontext():
            for number in range(self._retries + 1):
                try:
                    return work(self._connected())
                except VisualSearchError:
                    raise
                except Exception as error:  # of httpx, gRPC, pydantic or local mode: they have no base in common
                    wait = self._wait_seconds(number, error)
                    if number == self._retries or not may_pass(error) or time.monotonic() + wait > deadline:
                        raise StoreUnavailable(self._reason(attempt, error)) from error
                time.sleep(wait)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close the client of this process; a later call builds another."""
        self._leave_to_parent()
        client, self._client = self._client, self._given_client
        if client is not None and client is not self._given_client:
            client.close()

    def _leave_to_parent(self) -> None:
        """In a forked child: forget the parent's client without touching its connections."""
        if self._pid != os.getpid():
            if self._client is not self._given_client:
                never_destroy(self._client)
            self._pid, self._lock, self._client = os.getpid(), threading.RLock(), self._given_client

    def _connected(self) -> QdrantClient:
        client = self._client
        if client is None:
            with self._lock:
                client = self._client = self._client or _build(self._options)
        return client

    def _wait_seconds(self, number: int, error: Exception) -> float:
        asked = getattr(error, "retry_after_s", 0)  # of a 429 with Retry-After
        return float(min(max(asked, self._backoff_seconds * 2**number), MAX_WAIT_SECONDS))

    def _reason(self, attempt: str, error: Exception) -> str:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        if secret := self._options.get("api_key"):
            reason = reason.replace(secret, "***")
        return f"Could not {attempt} at {self.place}: {reason} {what_to_do(error)}".strip()


def may_pass(error: Exception) -> bool:
    """Say whether the same call may succeed a moment later: connection, time-out, 429, 5xx; never other 4xx."""
    if (status := _status(error)) is not None:
        return status == 429 or status >= 500
    if (code := _grpc_code(error)) is not None:
        return code in PASSING_GRPC_CODES
    import httpx

    return hasattr(error, "retry_after_s") or isinstance(getattr(error, "source", None), httpx.TransportError)


def what_to_do(error: Exception) -> str:
    """Return one sentence for the shop's staff, or nothing where the error says it."""
    import httpx

    status, code, source = _status(error), _grpc_code(error), getattr(error, "source", None)
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return "The server refuses the key: check the store's option 'api_key'; it must be allowed to write."
    if isinstance(source, httpx.TimeoutException) or code == "DEADLINE_EXCEEDED":
        return "The server did not answer in time: look at its load, or raise the store's 'timeout' or 'write_timeout'."
    if isinstance(source, httpx.TransportError) or code == "UNAVAILABLE":
        return "Is the server running, and is the store's 'url' right? The feed catches up once it answers."
    if status == 429 or hasattr(error, "retry_after_s") or code == "RESOURCE_EXHAUSTED":
        return "The server limits its load: raise its limits; the feed goes on by itself."
    if status is not None and status >= 500:
        return "Look at the server's log and disk; the feed goes on once it recovers."
    return ""


def _status(error: Exception) -> int | None:
    """Return the HTTP status that the server answered with, if it did."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _grpc_code(error: Exception) -> str | None:
    """Return the name of the gRPC status, if it is one."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) or None if callable(code) else None


def engine_models() -> Any:
    """Return the module with Qdrant's requests and answers. Raises ConfigurationError where it is not installed."""
    try:
        import numpy  # noqa: F401
        from qdrant_client import models
    except ImportError as error:
        raise ConfigurationError(
            f"QdrantStore needs {error.name!r}, which is not installed. "
            'Run `pip install "django-visual-search[qdrant]"`.'
        ) from error
    return models


def _build(options: Mapping[str, Any]) -> QdrantClient:
    engine_models()
    from qdrant_client import QdrantClient

    return QdrantClient(**options)
