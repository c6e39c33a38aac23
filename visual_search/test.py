"""For tests of shops that use the search: index at once, in this process, with an empty store each time."""

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
    """While it is active no worker is needed.

        with IndexNow() as index:
            product.save()
            index.drain()
            assert search(SearchQuery(texts=["a red shoe"])).hits

    In a transaction that commits, drains run by themselves as soon as they are asked for. Inside Django's
    TestCase nothing commits: call `drain()`.
    """

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._stack.callback(components.close_stores)
        components.close_stores()
        serving.reset()
        self._stack.enter_context(queue.inline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def drain(self) -> DrainReport:
        """Index everything that is dirty and return what was done."""
        queue.drain_started()
        return drain(seconds=float("inf"))

    def sweep(self) -> dict[str, int]:
        """Run the minute's sweep now, then drain what it found."""
        report = sweep()
        tasks.drain()
        return report
