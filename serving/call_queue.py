"""Calls over gRPC wait here for their turn, where it can be seen how long.

grpc.aio takes up one call at a time, each over several turns of the event loop; the others wait inside gRPC, unseen. A
worker that is busy answering therefore pauses now and then, and lets in what has come: then those who have waited too
long can be refused, and the rest be answered in time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

_PAUSE_AFTER_S = 0.01
"""Work after which calls are let in."""
_AT_MOST_S = 0.05
_QUIET_S = 0.001
"""Calls have been let in when none came for so long; a worker that had nothing to do for so long has let them in."""


class CallQueue:
    """Gives turns in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._came = 0
        self._worked_s = 0.0
        self._last_end = 0.0
        self._giving: asyncio.Task[None] | None = None

    async def turn(self) -> float:
        """Wait for a turn; when the wait began (`time.monotonic`)."""
        loop, came = asyncio.get_running_loop(), monotonic()
        mine = loop.create_future()
        self._waiting.append(mine)
        self._came += 1
        if self._giving is None:
            self._giving = loop.create_task(self._give())
        await mine
        return came

    async def _give(self) -> None:
        if monotonic() - self._last_end > _QUIET_S * 2:
            self._worked_s = 0.0
        while self._waiting:
            if self._worked_s > _PAUSE_AFTER_S:
                await self.let_in(_AT_MOST_S)
                self._worked_s = 0.0
            began = monotonic()
            one = self._waiting.popleft()
            if not one.done():  # its client may have gone
                one.set_result(None)
            await asyncio.sleep(0)  # it takes its turn
            self._last_end = monotonic()
            self._worked_s += self._last_end - began
        self._giving = None

    def count(self) -> None:
        """A call came that needs no turn."""
        self._came += 1

    async def let_in(self, at_most_s: float) -> None:
        """Return when no more calls come, or after `at_most_s` (wall)."""
        until = monotonic() + at_most_s
        came = -1
        while came != self._came and monotonic() < until:
            came = self._came
            await asyncio.sleep(_QUIET_S)  # calls come in by turns of the loop
