"""Show progress on stderr: a bar in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

LINE_SECONDS = 2  # between two lines in a log


class Progress:
    """`with Progress(total, "Indexing") as bar: bar.advance()`; tqdm draws the bar where it is installed."""

    def __init__(self, total: int, label: str, *, unit: str = "product") -> None:
        self.total, self.label, self.done = total, label, 0
        self._printed_at = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, desc=label, unit=unit)

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._printed_at >= LINE_SECONDS:
            self._print_line()

    def _print_line(self) -> None:
        sys.stderr.write(f"{self.label}: {self.done} of {self.total}\n")
        self._printed_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done:
            self._print_line()
