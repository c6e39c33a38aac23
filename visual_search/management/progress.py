"""A progress bar on stderr for people, nothing for pipes."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Self


class Progress:
    """`with Progress(total, "Indexing") as bar: bar.advance()`; tqdm draws it where it is installed."""

    def __init__(self, total: int, label: str) -> None:
        self._bar: Any = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(total=total, desc=label, unit="product", file=sys.stderr, disable=None, leave=True)

    def advance(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
