"""Waiting for another process or thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import psutil


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Return as soon as `condition()` holds; AssertionError with `what` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)  # between two looks: what is waited for needs the processor too


def wait_until_ended(found: Iterable[psutil.Process], seconds: float = 30.0) -> None:
    """Return when none of these processes runs. One that has ended has, though nobody may have waited for it yet: who
    should, for an orphan, is the first process of this machine, in its own time.
    """
    left = list(found)
    wait_until(lambda: not any(map(_runs, left)), f"{left} end", seconds)


def _runs(process: psutil.Process) -> bool:
    try:
        # A process is a zombie already while other threads of it come to their end, and still hold its ports.
        ended = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
        return process.is_running() and not ended
    except psutil.NoSuchProcess:
        return False
