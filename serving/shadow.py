"""The second arm's scoring, after the answer has left: a bounded queue in front of one consumer.

A place is reserved before the assignment is written, so that the log promises a pair only when one will come. When the
queue is full nothing is promised, and the shed request is counted.

Clients go first: a job is done in a turn of the loop that had nothing to do for them, and is short (`Pace.most`), so
that whoever comes meanwhile waits no longer than for a request like their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple

_log = logging.getLogger("slipway.shadow")

_PATIENCE_S = 0.02
"""How long a second arm makes way (wall). A worker that never rests gives so little to pairs, but not nothing."""


class Job(NamedTuple):
    """The scoring of as many second arms as it has places.

    `side_by_side`: others may begin before it ends, since they are scored in batches.
    """

    score: Callable[[], Awaitable[None]]
    side_by_side: bool = False
    places: int = 1


class ShadowQueue:
    """At most `capacity` requests reserved, waiting or being scored."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._taken = 0
        self.stir = 0
        """Moves with every request that comes and every answer that leaves, of any model."""
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._consumer: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def taken(self) -> int:
        return self._taken

    def start(self) -> None:
        """Begin to consume, in the running loop."""
        self._consumer = asyncio.get_running_loop().create_task(self._consume(), name="shadow")

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
        self._queue.put_nowait(job)

    async def drain(self, timeout_s: float) -> None:
        """Score what is waiting, for at most `timeout_s` (wall), then stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), timeout_s)
        if self._consumer is not None:
            self._consumer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._consumer

    async def _rest(self) -> None:
        """Wait for a turn of the loop in which no request came and none was answered."""
        until = monotonic() + _PATIENCE_S
        while monotonic() < until:
            before = self.stir
            await asyncio.sleep(0)  # one turn of the loop: it reads what has come
            if self.stir == before:
                return

    async def _consume(self) -> None:
        while True:
            job = await self._queue.get()
            await self._rest()
            if job.side_by_side:
                task = asyncio.get_running_loop().create_task(self._run(job))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            else:
                await self._run(job)

    async def _run(self, job: Job) -> None:
        try:
            await job.score()
        except Exception:  # noqa: BLE001 - one request's second arm must not end all later ones
            _log.exception("shadow scoring failed")
        finally:
            self._taken -= job.places
            self._queue.task_done()
