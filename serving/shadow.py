"""The second arm's scoring, after the answer has left: a bounded queue in front of one consumer.

A place is reserved before the assignment is written, so that the log promises a pair only when one will come. When the
queue is full nothing is promised, and the shed request is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

_log = logging.getLogger("slipway.shadow")

_TURNS = 8
"""Turns of the loop in which requests were answered before a second arm is scored all the same."""


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
        self.requests = 0
        """Requests answered by this worker, of any model."""
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

    async def _pause(self) -> None:
        """Let requests that have come be answered first; for a bounded time, so that pairs come of a busy hour, too."""
        for _ in range(_TURNS):
            answered = self.requests
            await asyncio.sleep(0)  # one turn of the loop: it reads what has come
            if self.requests == answered:
                return

    async def _consume(self) -> None:
        while True:
            job = await self._queue.get()
            await self._pause()
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
