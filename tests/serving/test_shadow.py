"""Second arms wait for a turn of the loop that has nothing to do for clients, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from serving import shadow
from serving.shadow import Job, ShadowQueue

pytestmark = pytest.mark.anyio


class Busy:
    """A loop in which every turn, for a while, a request comes; and when jobs were done, by the number of requests."""

    def __init__(self) -> None:
        self.queue = ShadowQueue(capacity=8)
        self.came = 0
        self.done_at: list[int] = []

    def job(self, *, waits: bool = False) -> Job:
        assert self.queue.reserve()

        async def wait() -> None:
            await asyncio.sleep(0)
            self.done_at.append(self.came)

        return Job(wait if waits else lambda: self.done_at.append(self.came))

    async def while_requests_come(self, still: Callable[[], bool]) -> None:
        while still():
            self.came += 1
            self.queue.stir += 1
            await asyncio.sleep(0)

    async def done(self, jobs: int) -> None:
        async with asyncio.timeout(30.0):
            while len(self.done_at) < jobs:  # noqa: ASYNC110 - the queue tells nobody
                await asyncio.sleep(0)


async def test_second_arms_wait_while_every_turn_has_a_request_and_follow_as_soon_as_one_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "_PATIENCE_S", 600.0)  # longer than any turn of a busy machine
    busy = Busy()
    busy.queue.start()
    for waits in (False, True, False):
        busy.queue.put(busy.job(waits=waits))
    await busy.while_requests_come(lambda: busy.came < 200)
    assert busy.done_at == []
    await busy.done(3)
    assert busy.done_at == [200] * 3
    assert busy.queue.taken == 0
    await busy.queue.drain(1.0)


async def test_a_worker_that_never_rests_gives_second_arms_one_moment_in_a_while() -> None:
    busy = Busy()
    busy.queue.start()
    for _ in range(2):
        busy.queue.put(busy.job())
    began = monotonic()
    await busy.while_requests_come(lambda: len(busy.done_at) < 2 and monotonic() - began < 30.0)
    assert len(busy.done_at) == 2
    assert monotonic() - began >= 2 * shadow._PATIENCE_S
    await busy.queue.drain(1.0)


async def test_a_job_that_fails_gives_its_places_back_and_the_next_is_done(caplog: pytest.LogCaptureFixture) -> None:
    busy = Busy()
    busy.queue.start()

    def fail() -> None:
        raise ValueError("built to fail")

    async def fail_later() -> None:
        raise ValueError("built to fail later")

    for score in (fail, fail_later):
        assert busy.queue.reserve()
        busy.queue.put(Job(score))
    busy.queue.put(busy.job())
    await busy.queue.drain(30.0)
    assert (busy.done_at, busy.queue.taken) == ([0], 0)
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == [
        "built to fail", "built to fail later",
    ]  # fmt: skip


async def test_the_end_waits_for_what_was_promised_but_not_for_ever() -> None:
    busy = Busy()
    busy.queue.start()
    assert busy.queue.reserve()
    busy.queue.put(Job(lambda: asyncio.sleep(600.0)))
    busy.queue.put(busy.job())
    began = monotonic()
    await busy.queue.drain(0.05)
    assert monotonic() - began < 30.0
    assert busy.done_at == []
