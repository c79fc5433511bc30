"""The second arm's scoring, after the answer has left: a bounded queue of jobs, done one after the other.

A place is reserved before the assignment is written, so that the log promises a pair only when one will come. When the
queue is full nothing is promised, and the shed request is counted.

Clients go first: a job is done in a turn of the loop before which no request came, and is short (`Pace.most`), so that
whoever comes meanwhile waits no longer than for a request like their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple

_log = logging.getLogger("slipway.shadow")

_PATIENCE_S = 0.02
"""How long a second arm makes way (wall). A worker that never rests gives so little to pairs, but not nothing."""


class Job(NamedTuple):
    """The scoring of as many second arms as it has places. `score` is done when it returns, or gives what to wait for.

    `side_by_side`: others may begin before it ends, since they are scored in batches.
    """

    score: Callable[[], Awaitable[None] | None]
    side_by_side: bool = False
    places: int = 1


class ShadowQueue:
    """At most `capacity` requests reserved, waiting or being scored."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._taken = 0
        self.stir = 0
        """Moves whenever this worker has something to do for a client: a request has come, or not all are answered."""
        self._jobs: deque[Job] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._held = False  # a turn is to come already, or a job runs that the others wait for
        self._seen = 0
        self._until = 0.0
        self._running: set[asyncio.Task[None]] = set()
        self._open = 0  # jobs put, and not done
        self._done = asyncio.Event()
        self._done.set()

    @property
    def taken(self) -> int:
        return self._taken

    def start(self) -> None:
        """Begin to score, in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._go_on()

    def reserve(self) -> bool:
        """Take a place, if there is one. Every place taken must be used by `put` or given back by `release`."""
        if self._taken >= self._capacity:
            return False
        self._taken += 1
        return True

    def release(self) -> None:
        """Give back a place that will not be used."""
        self._taken -= 1

    def put(self, job: Job) -> None:
        """Use the reserved place, or places."""
        self._jobs.append(job)
        self._open += 1
        self._done.clear()
        self._go_on()

    async def drain(self, timeout_s: float) -> None:
        """Score what is waiting, for at most `timeout_s` (wall), then stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), timeout_s)
        self._loop = None
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    def _go_on(self) -> None:
        """Have the next job done once this turn of the loop has ended, and what came with it has been answered."""
        if self._jobs and not self._held and self._loop is not None:
            self._held = True
            self._seen, self._until = self.stir, monotonic() + _PATIENCE_S
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if self._loop is None:
            return
        if self.stir != self._seen and monotonic() < self._until:
            self._seen = self.stir
            self._loop.call_soon(self._turn)
            return
        job = self._jobs.popleft()
        work = None
        try:
            work = job.score()
        except Exception:  # noqa: BLE001 - one request's second arm must not end all later ones
            _log.exception("shadow scoring failed")
        if work is None:
            self._end(job)
        else:
            task = self._loop.create_task(self._wait(job, work))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if work is None or job.side_by_side:
            self._held = False
            self._go_on()

    async def _wait(self, job: Job, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 - one request's second arm must not end all later ones
            _log.exception("shadow scoring failed")
        finally:
            if not job.side_by_side:
                self._held = False
            self._end(job)
            self._go_on()

    def _end(self, job: Job) -> None:
        self._taken -= job.places
        self._open -= 1
        if not self._open:
            self._done.set()
