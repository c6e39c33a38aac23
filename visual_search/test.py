"""A test helper for shops: index in the test's process, without a worker, each time with an empty store."""

from __future__ import annotations

from contextlib import ContextDecorator, ExitStack
from types import TracebackType
from typing import Self

from visual_search import components, tasks
from visual_search.index import queue
from visual_search.index.drain import drain
from visual_search.index.finish import DrainReport
from visual_search.index.sweep import sweep
from visual_search.search import serving


class IndexNow(ContextDecorator):
    """Index in this process while active, without a worker. Use it as a context manager or decorator.

        with IndexNow() as index:
            product.save()
            index.drain()
            assert search(SearchQuery(texts=["a red shoe"])).hits

    Where transactions commit, a drain runs automatically as soon as it is requested. Inside Django's TestCase
    nothing commits: call `drain()`.
    """

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.callback(components.close_stores)
        components.close_stores()
        serving.reset()
        self._stack.enter_context(queue.run_inline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def drain(self) -> DrainReport:
        """Index all dirty products and return what was done."""
        queue.record_drain_start()
        return drain(seconds=float("inf"))

    def sweep(self) -> dict[str, int]:
        """Run a sweep now, then drain what it found. Return the sweep's counts."""
        report = sweep()
        tasks.drain()
        return report
