"""Where arms are scored: quick ones in the loop, and no challenger is waited for longer than its route allows."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipelines.contracts.events import Assignment, Response
from pipelines.contracts.routes import Breaker
from serving import arms
from serving.arms import _ALARM_S, _PROVEN, _QUICK_US, _SLOW_COSTS, Alarm, Pace, TooSlow
from serving.scoring import Outcome
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio


def strikes(x: float, share: float) -> bool:
    """Whether a fault of this share strikes at `x` (tests/builders.py)."""
    return bool((np.sin(x * 12.9898 + 78.233) * 43758.5453) % 1.0 < share)


HARMLESS = next(x for x in np.arange(1.0, 100.0) if not strikes(x, 0.5))
HARMFUL = next(x for x in np.arange(1.0, 100.0) if strikes(x, 0.5))


def test_two_releases_are_scored_in_the_loop_once_both_have_been_quick_often_enough() -> None:
    pace, quick = Pace(), Outcome("ok", _QUICK_US)
    for _ in range(_PROVEN):
        pace.note("champion", quick)
    assert not pace.at_once
    for k in range(_PROVEN):
        assert not pace.at_once, k
        pace.note("challenger", quick)
    assert pace.at_once
    pace.note("challenger", Outcome("ok", 10 * _QUICK_US, features_us=9 * _QUICK_US))
    assert pace.at_once, "waiting for features is no fault of a release"
    slow = Outcome("ok", _QUICK_US + 1)
    for _ in range(1000):
        # One in twenty is interrupted, as on a busy machine.
        pace.note("challenger", slow)
        for _ in range(19):
            pace.note("challenger", quick)
        assert pace.at_once
    for k in range(_PROVEN // _SLOW_COSTS):
        assert pace.at_once, k
        pace.note("challenger", slow)
    assert not pace.at_once
    for _ in range(_PROVEN):
        pace.note("challenger", quick)
    assert pace.at_once
    pace.give_up()
    for _ in range(2 * _PROVEN):
        pace.note("champion", quick)
        pace.note("challenger", quick)
    assert not pace.at_once


async def test_a_challenger_that_hangs_in_the_loop_is_ended_and_stays_in_its_thread(
    home: Installation, start: Start
) -> None:
    hanging = home.release(0.7, semver="1.2.0", sleep_s=3.0, sleep_share=0.5)
    home.publish("split", challenger=hanging, breaker=Breaker(timeout_ms=200), share_ppm=1_000_000)
    async with start() as running:
        pace = running.gateway.table.plans["m"].pace
        for k in range(20 * _PROVEN):
            await running.infer(f"q{k}", x=HARMLESS)
            await running.shadows_done()
            if pace.at_once:
                break
        assert pace.at_once
        before = len(home.events(Response))
        began = time.monotonic()
        answer = await running.infer("harmful", x=HARMFUL)
        assert answer.json()["parameters"]["arm"] == "champion"
        await running.shadows_done()
        assert _ALARM_S < time.monotonic() - began < 2.9, "neither the loop nor the client waits for it"
        assert not pace.at_once
        after = (await running.infer("later", x=HARMLESS)).json()["parameters"]
        await running.shadows_done()
    assert after["arm"] == "champion", "its thread still sleeps"
    failed = [one for one in home.events(Response)[before:] if one.status == "error"]
    assert [(one.request_id, one.arm) for one in failed][:1] == [("harmful", "challenger")]
    assert "timeout after 200 ms" in failed[0].error
    assert all(one.paired for one in home.events(Assignment)[:_PROVEN])


async def test_an_alarm_that_is_swallowed_strikes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed: list[int] = []

    def hangs(*_: object) -> list[Outcome]:
        until = time.monotonic() + 10.0
        while time.monotonic() < until:
            try:
                time.sleep(0.5)  # the code that hangs
            except TooSlow:
                if len(swallowed) == 2:
                    raise
                swallowed.append(1)
        return []

    monkeypatch.setattr(arms, "score_together", hangs)
    began = time.monotonic()
    with pytest.raises(TooSlow):
        Alarm().score(None, [None])
    assert swallowed == [1, 1]
    assert time.monotonic() - began < 5.0
