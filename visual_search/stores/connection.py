"""Connect to a Qdrant server: one client per process, retries, and errors that say what to do."""

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
TRANSIENT_GRPC_CODES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN"}


class Connection:
    """A connection whose client is built at the first call in a process, so never before a fork.

    place: the server's name in error messages. client: an existing client, which is never closed here.
    is_local: whether the client is qdrant-client's in-process engine, which is not thread-safe.
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

    def call(self, action: str, work: Callable[[QdrantClient], T], *, retry_within_seconds: float) -> T:
        """Call `work` with the client and return its result. Retry transient errors after growing waits.

        action: for the error message, such as "query collection 'shop_v1'". retry_within_seconds: no retry starts
        later than this after the first call, so that a shopper does not wait for several timeouts in a row.
        Raises StoreUnavailable for whatever the client raises.
        """
        self._detach_after_fork()
        deadline = time.monotonic() + retry_within_seconds
        with self._lock if self.is_local else nullcontext():
            for number in range(self._retries + 1):
                try:
                    return work(self._connected())
                except VisualSearchError:
                    raise
                except Exception as error:  # from httpx, gRPC, pydantic or local mode, which share no base class
                    wait = self._wait_seconds(number, error)
                    if number == self._retries or not is_transient(error) or time.monotonic() + wait > deadline:
                        raise StoreUnavailable(self._reason(action, error)) from error
                time.sleep(wait)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close this process's client. A later call builds another."""
        self._detach_after_fork()
        client, self._client = self._client, self._given_client
        if client is not None and client is not self._given_client:
            client.close()

    def _detach_after_fork(self) -> None:
        """In a forked child, drop the parent's client without touching its connections."""
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
        retry_after = getattr(error, "retry_after_s", 0)  # set for a 429 with Retry-After
        return float(min(max(retry_after, self._backoff_seconds * 2**number), MAX_WAIT_SECONDS))

    def _reason(self, action: str, error: Exception) -> str:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        if secret := self._options.get("api_key"):
            reason = reason.replace(secret, "***")
        return f"Could not {action} at {self.place}: {reason} {advice_for(error)}".strip()


def is_transient(error: Exception) -> bool:
    """Return whether a retry may succeed: after connection errors, timeouts, 429 and 5xx; never after other 4xx."""
    if (status := _status(error)) is not None:
        return status == 429 or status >= 500
    if (code := _grpc_code(error)) is not None:
        return code in TRANSIENT_GRPC_CODES
    import httpx

    return hasattr(error, "retry_after_s") or isinstance(getattr(error, "source", None), httpx.TransportError)


def advice_for(error: Exception) -> str:
    """Return one sentence of advice for the shop's staff, or an empty string if the error is clear by itself."""
    import httpx

    status, code, source = _status(error), _grpc_code(error), getattr(error, "source", None)
    if status in (401, 403) or code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return "The server rejects the key: check the store's option 'api_key'; the key must allow writing."
    if isinstance(source, httpx.TimeoutException) or code == "DEADLINE_EXCEEDED":
        return "The server did not answer in time: check its load, or raise the store's 'timeout' or 'write_timeout'."
    if isinstance(source, httpx.TransportError) or code == "UNAVAILABLE":
        return "Is the server running, and is the store's 'url' right? The feed catches up when it answers."
    if status == 429 or hasattr(error, "retry_after_s") or code == "RESOURCE_EXHAUSTED":
        return "The server limits requests: raise its limits. The feed continues automatically."
    if status is not None and status >= 500:
        return "Check the server's log and disk. The feed continues when it recovers."
    return ""


def _status(error: Exception) -> int | None:
    """Return the HTTP status of the server's response, or None if there was none."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _grpc_code(error: Exception) -> str | None:
    """Return the name of the gRPC status, or None for other errors."""
    code = getattr(error, "code", None)
    return str(getattr(code(), "name", "")) or None if callable(code) else None


def engine_models() -> Any:
    """Return the module of Qdrant's request and response models. Raises ConfigurationError if it is not installed."""
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
