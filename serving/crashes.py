"""Workers that died of a fault in native code, noted by their supervisor and counted by those that follow.

A challenger whose model or library ends the process is never seen by the breaker, which counts calls that return. Who
kills a worker from outside (SIGKILL, SIGTERM), and a worker that cannot start, say nothing about a challenger.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.contracts.clocks import wall_us

_log = logging.getLogger("slipway.gateway")

_FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE})
_WITHIN_US = 60_000_000
BOUND = 3
"""So many deaths within a minute withdraw every challenger in place; one that bakes gives way to its fallback."""


def note_crashes(watcher: Any, folder: Path) -> None:
    """In the supervisor: from now on each death by a fault leaves a file in `folder`. `watcher`: circus' class."""
    notify: Callable[..., None] = watcher.notify_event

    def noting(self: Any, topic: str, message: dict[str, Any]) -> None:
        if topic == "reap" and -int(message.get("exit_code") or 0) in _FAULTS:
            note(folder)
        notify(self, topic, message)

    watcher.notify_event = noting


def note(folder: Path) -> None:
    """One more death, now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(wall_us())).touch()
    except OSError as error:
        _log.error("a worker's death is not noted: %s", error)


def recent(folder: Path) -> int:
    """How many workers have died so within the last minute (wall); older files are removed."""
    since_us, count = wall_us() - _WITHIN_US, 0
    for path in folder.glob("[0-9]*"):
        if int(path.name) >= since_us:
            count += 1
        else:
            path.unlink(missing_ok=True)
    return count
