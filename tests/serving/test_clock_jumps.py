"""The wall clock of the host steps forward and back while requests run: nothing that decides may depend on it."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from pipelines.collect.numbering import merge
from pipelines.contracts import events, segments
from pipelines.contracts.events import Assignment, Label, Override, Response
from pipelines.contracts.routes import Breaker
from tests.serving.conftest import TOKEN, Installation, Start

pytestmark = pytest.mark.anyio

DAY_NS = 86_400 * 10**9


class JumpyClock:
    """`time.time_ns` with steps of up to two days in either direction, seeded."""

    def __init__(self, seed: int) -> None:
        self._true = time.time_ns
        self._rng = random.Random(seed)
        self.offset_ns = 0
        self.jumps: set[int] = set()

    def jump(self) -> None:
        self.offset_ns += self._rng.choice((-1, 1)) * self._rng.randrange(DAY_NS // 24, 2 * DAY_NS)
        self.jumps.add(self.offset_ns)

    def __call__(self) -> int:
        return self._true() + self.offset_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> JumpyClock:
    jumpy = JumpyClock(seed=20260)
    monkeypatch.setattr("time.time_ns", jumpy)
    return jumpy


async def test_events_keep_their_order_and_the_breaker_its_count(
    home: Installation, start: Start, clock: JumpyClock
) -> None:
    bad = home.release(0.7, semver="2.0.0", error=True)
    home.publish("split", share_ppm=1_000_000, challenger=bad, breaker=Breaker(window=10, failures=4))
    epochs = []
    async with start() as running:
        for k in range(12):
            clock.jump()
            answer = await running.infer(f"q{k}")
            assert (answer.status_code, answer.json()["parameters"]["arm"]) == (200, "champion")
            labelled = await running.client.post("/v1/models/m/labels", json={"labels": [{"id": f"q{k}", "value": 1}]})
            assert labelled.status_code == 202
            await running.shadows_done()
        epochs.append(running.gateway.log.epoch)
        (override,) = home.events(Override)
        home.publish("split", share_ppm=1_000_000, clears_overrides=[str(override.id)])
        clock.jump()
        await running.in_force(2)
        assert (await running.infer("again")).json()["parameters"]["arm"] == "challenger"
    tried = [one for one in home.events(Response) if one.arm == "challenger" and one.status == "error"]
    assert len(tried) == 4, "the window counts calls, whatever time it is"
    assert all(one.latency_us >= 0 for one in home.events(Response))
    times = [one.wall_us for one in home.events(Assignment)]
    assert times != sorted(times), "the clock did step back"

    # Restarted a week before its own past, a worker's epoch is still the newest of its epochs.
    clock.offset_ns -= 7 * DAY_NS
    async with start() as running:
        assert running.gateway.log.epoch > epochs[0]
        assert running.gateway.table.plans["m"].effective.override is None, "what was cleared stays cleared"
        done = await running.client.post("/v1/models/m/rollback", headers={"authorization": f"Bearer {TOKEN}"})
        assert done.status_code == 200
        clock.offset_ns += 14 * DAY_NS
        assert (await running.infer("after")).json()["parameters"]["arm"] == "champion"
    assert len(home.events(Label)) == 12

    streams = [
        [
            events.decode(frame.payload)
            for path in sorted(folder.glob("*.seg"))
            for frame in segments.read_frames(path.read_bytes())
        ]
        for folder in sorted((home.home / "bus" / "gw0").iterdir())
    ]
    assert [[event.id.n for event in stream] for stream in streams] == [list(range(len(one))) for one in streams]
    for order in itertools.permutations(streams):
        merged = list(merge(list(order)))
        for stream in streams:
            mine = [event for event in merged if event.id.epoch == stream[0].id.epoch]
            assert mine == stream, "the collector keeps each stream's own order"
