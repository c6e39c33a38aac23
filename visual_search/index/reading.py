"""Threads that read and decode images. A read that hangs costs one thread, never the task."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class ReadingThreads(Generic[T]):
    """A pool of daemon threads.

    That of concurrent.futures waits for its threads when the process ends: for ever, if one hangs in a storage.
    """

    def __init__(self, threads: int) -> None:
        self._calls: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
        self._threads = 0
        for _ in range(threads):
            self.add_thread()

    def add_thread(self) -> None:
        """Start another thread, for one that hangs."""
        self._threads += 1
        threading.Thread(target=self._run, name="visual_search-read", daemon=True).start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def _run(self) -> None:
        while (submitted := self._calls.get()) is not None:
            future, call = submitted
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while True:  # what was read ahead and is not wanted any more
            try:
                self._calls.get_nowait()
            except Empty:
                break
        for _ in range(self._threads):
            self._calls.put(None)
