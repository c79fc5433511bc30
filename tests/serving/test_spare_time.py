"""Time for work that nobody waits for: a share of what the other work leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.events import Assignment, Response
from serving.spare_time import SpareTime
from tests.serving.conftest import Installation, Start

COSTS_S = 60e-6


class Thread:
    """A thread whose other work takes `load` of the time; each piece of work comes on top, and really costs so much."""

    def __init__(self, share: float, load: float) -> None:
        self.now_s = self.busy_s = 0.0
        self.load = load
        self.spare = SpareTime(share, lambda: self.now_s, lambda: self.busy_s)

    def lives(self, seconds: float) -> None:
        self.now_s += seconds
        self.busy_s += self.load * seconds

    def works(self) -> None:
        with self.spare:
            self.now_s += COSTS_S
            self.busy_s += COSTS_S
        self.spare.are_done(1)

    def asked_for(self, seconds: float, every_s: float = 0.0002) -> int:
        """How many pieces there was time for, asked for so often."""
        until, done = self.now_s + seconds, 0
        while self.now_s < until:
            self.lives(every_s)
            if self.spare.take():
                self.works()
                done += 1
        return done


@given(share=st.floats(0.01, 0.2), load=st.floats(0, 0.95))
def test_work_takes_its_share_of_the_idle_time_whatever_the_load(share: float, load: float) -> None:
    thread = Thread(share, load)
    thread.asked_for(1.0)  # what a piece costs is learnt, and what was saved is spent
    allowed_s = share * (1 - load) * 4.0
    spent_s = thread.asked_for(4.0) * COSTS_S
    # It pays for what is not seen of it, too; one piece may be taken on credit.
    assert 0.5 * allowed_s - COSTS_S < spent_s < allowed_s + 2 * COSTS_S


def test_a_busy_thread_has_no_time() -> None:
    thread = Thread(0.05, load=1.0)
    thread.asked_for(1.0)
    assert thread.asked_for(10.0) == 0


def test_time_that_was_not_taken_is_not_saved_up() -> None:
    thread = Thread(0.05, load=0.0)
    thread.asked_for(1.0)
    thread.lives(3600.0)
    assert thread.asked_for(0.02) * COSTS_S < 0.01


def test_a_share_of_one_is_no_bound() -> None:
    thread = Thread(1.0, load=1.0)
    assert all(thread.spare.take() for _ in range(10_000))


@pytest.mark.anyio
async def test_requests_for_whose_second_arm_there_is_no_time_are_shed_and_what_is_promised_comes(
    home: Installation, start: Start
) -> None:
    home.publish("shadow")
    async with start(limits={"shadow_share": 1e-6}) as running:
        for k in range(120):
            assert (await running.infer(f"q{k}")).status_code == 200
            await running.shadows_done()
        metrics = (await running.client.get("/metrics")).text
    promised = {one.request_id for one in home.events(Assignment) if one.paired}
    assert 0 < len(promised) < 120
    assert promised == {one.request_id for one in home.events(Response) if one.shadow}
    assert f'slipway_shadow_shed_total{{model="m"}} {120 - len(promised)}.0' in metrics
