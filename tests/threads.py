"""Clients in threads of their own, for as long as a block lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Threads:
    """Runs `work(number)` in `count` threads from the block's begin; it has to return once `stopping` is true."""

    def __init__(self, work: Callable[[int], None], count: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]

    @property
    def stopping(self) -> bool:
        """Whether the block has ended."""
        return self._stop.is_set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
