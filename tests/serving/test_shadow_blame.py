"""Whose fault it is when second arms take long or end their process: the arm that was being scored, and no other."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.contracts.events import NOT_COMPARED, Override
from pipelines.contracts.routes import Breaker
from serving import shadow
from serving.inputs import Bound
from serving.models import LoadedModel
from serving.online_features.plan import NOTHING
from serving.scoring import Scorer
from serving.shadow_mark import Mark
from serving.shadow_messages import Company, Done, Incoming, sent_request
from serving.shadow_scoring import PairScorer
from tests.serving.conftest import Installation, Start
from tests.serving.test_arms import HARMFUL, HARMLESS
from tests.serving.test_shadow import pairs
from tests.serving.test_shadow_releases import ORDINARY, UNLUCKY, release_that, two_on_the_way

pytestmark = pytest.mark.anyio

IN_ITS_PROCESS = "__import__('sys').argv[0].endswith('shadow_process.py')"


@pytest.mark.parametrize("what", ["os.abort()", "time.sleep(600)"])
async def test_a_champion_that_fails_in_the_shadow_process_costs_its_challenger_the_comparison_alone(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(shadow, "_AGAIN_S", 0.0)
    monkeypatch.setattr(shadow, "_UNBOUND_S", 1.0)
    champion = release_that(home, f"{IN_ITS_PROCESS} and {what}")
    home.publish("shadow", champion=champion, breaker=Breaker(failures=1, timeout_ms=60_000))
    async with start() as running:
        for name, x in (("before", ORDINARY), ("unlucky", UNLUCKY), ("after", ORDINARY)):
            await running.infer(name, x=x)
            await running.shadows_done()
    found = pairs(home)
    assert {(one.status, one.score[0]) for one in found.values()} == {("ok", 0.7)}
    assert [found[name].beside_us == NOT_COMPARED for name in ("before", "unlucky", "after")] == [False, True, False]
    assert home.events(Override) == []


async def test_a_champion_that_is_slower_than_its_challenger_may_be_is_waited_for(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_TICK_S", 0.02)
    monkeypatch.setattr(shadow, "_PATIENCE_S", 0.1)
    champion = home.release(0.3, semver="1.2.0", sleep_s=0.5, sleep_share=0.5)
    home.publish("shadow", champion=champion, breaker=Breaker(failures=1, timeout_ms=50))
    async with start() as running:
        for name, x in (("first", HARMLESS), ("slow", HARMFUL)):
            await running.infer(name, x=x)
            await running.shadows_done()
    slow = pairs(home)["slow"]
    assert (slow.status, slow.score) == ("ok", [0.7])
    assert slow.beside_us is not None
    assert slow.beside_us >= 500_000


async def test_companies_of_a_challenger_that_was_switched_off_are_shed(home: Installation, start: Start) -> None:
    home.publish("shadow")
    async with start() as running:
        pid = await two_on_the_way(running)
        for k in range(5):
            await running.infer(f"q{k}")
        running.gateway.override(running.gateway.table.plans["m"], "by hand", "ann")
        os.kill(pid, signal.SIGCONT)
        await running.shadows_done()
        shed = running.gateway.metrics.shed("m").n
    assert set(pairs(home)) == {"first", "second", "third"}
    assert shed == 5


class Scored:
    """What a shadow process makes of four requests, by a clock that `takes_ms` of each call and request moves."""

    def __init__(self, home: Installation, patch: pytest.MonkeyPatch, call_ms: int, request_ms: int) -> None:
        self.now_ns = 0
        patch.setattr(LoadedModel, "predict", self._taking(LoadedModel.predict, call_ms))
        patch.setattr(Scorer, "outcome", self._taking(Scorer.outcome, request_ms))
        memory = Mark.descriptor()
        self.mark = Mark(memory)
        os.close(memory)
        releases = {"champion": home.champion, "challenger": home.challenger}
        bound = Bound(1, {"x": np.array([1.0])}, {}, ("x",), np.array([[1.0]]), [])
        requests = [sent_request(Scorer(bound, NOTHING))] * 4
        company = Company(1, "challenger", releases, {}, False, False, 20_000, requests)
        scorer = PairScorer(Path(home.home / "releases"), None, lambda: self.now_ns, lambda _: None, self.mark)
        (done,) = Incoming().of_process(scorer.answer(company))
        assert isinstance(done, Done)
        self.outcomes = [(one.status, one.error) for one in done.scored]

    def _taking(self, method: Any, took_ms: int) -> Any:
        def timed(*arguments: Any) -> Any:
            self.now_ns += took_ms * 1_000_000
            return method(*arguments)

        return timed


@pytest.mark.parametrize(
    ("call_ms", "request_ms", "comes_in_time"), [(19, 0, True), (21, 0, False), (0, 19, True), (0, 21, False)]
)
async def test_a_request_in_company_has_the_time_that_it_has_alone(
    home: Installation, monkeypatch: pytest.MonkeyPatch, call_ms: int, request_ms: int, comes_in_time: bool
) -> None:
    scored = Scored(home, monkeypatch, call_ms, request_ms)
    assert scored.outcomes == [("ok", "") if comes_in_time else ("error", "timeout after 20 ms")] * 4


def test_a_mark_is_seen_through_every_map_of_its_memory() -> None:
    memory = Mark.descriptor()
    here, there = Mark(memory), Mark(memory)
    os.close(memory)
    assert (here.begun, here.is_beside) == (0, False)
    for begun, beside in ((1, True), (2, False), (3, True)):
        there.begin(beside=beside)
        assert (here.begun, here.is_beside) == (begun, beside)
