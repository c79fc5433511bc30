"""A challenger that ends its workers' processes is switched off by those that follow them."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.contracts.clocks import wall_us
from pipelines.contracts.events import Override
from serving import crashes
from tests.serving.conftest import Installation, Start
from tests.serving.processes import bentoml_serve
from tests.waiting import wait_until


def folder(home: Installation) -> Path:
    return home.home / "gateway" / "gw0" / "crashes"


@pytest.mark.anyio
@pytest.mark.parametrize(("deaths", "off"), [(crashes.BOUND - 1, False), (crashes.BOUND, True)])
async def test_after_some_deaths_within_a_minute_every_challenger_in_place_goes_off(
    home: Installation, start: Start, deaths: int, off: bool
) -> None:
    home.publish("split", share_ppm=1_000_000)
    folder(home).mkdir(parents=True)
    for ago_s in (61, 3600, *range(deaths)):
        (folder(home) / str(wall_us() - ago_s * 1_000_000)).touch()
    async with start() as running:
        arm = (await running.infer()).json()["parameters"]["arm"]
        assert len(list(folder(home).iterdir())) == deaths  # those of long ago are removed
    overrides = home.events(Override)
    assert (arm, len(overrides)) == (("champion", 1) if off else ("challenger", 0))
    assert all("workers died" in one.reason and one.action == "challenger_off" for one in overrides)


@pytest.mark.anyio
async def test_a_challenger_that_bakes_gives_way_to_its_fallback(home: Installation, start: Start) -> None:
    home.publish(champion=home.challenger, fallback=home.champion, rollout_id="r1", stage="bake")
    for ago_s in range(crashes.BOUND):
        folder(home).mkdir(parents=True, exist_ok=True)
        (folder(home) / str(wall_us() - ago_s * 1_000_000)).touch()
    async with start() as running:
        assert (await running.infer()).json()["parameters"]["release"] == home.champion
    (override,) = home.events(Override)
    assert (override.action, override.withdrawn) == ("champion_to_fallback", home.challenger)
    assert "workers died" in override.reason


@pytest.mark.anyio
async def test_without_a_challenger_deaths_change_nothing(home: Installation, start: Start) -> None:
    home.publish(fallback=home.challenger)
    for _ in range(5):
        crashes.note(folder(home))
    async with start() as running:
        assert (await running.infer()).json()["parameters"]["release"] == home.champion
    assert home.events(Override) == []


def test_only_faults_of_the_process_itself_are_noted(tmp_path: Path) -> None:
    told: list[int] = []

    class Watcher:
        def notify_event(self, topic: str, message: dict[str, Any]) -> None:
            told.append(message["exit_code"])

    crashes.note_crashes(Watcher, tmp_path)
    endings = [0, 1, 3, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGSEGV, -signal.SIGABRT]
    for code in endings:
        Watcher().notify_event("reap", {"exit_code": code})
        Watcher().notify_event("spawn", {"exit_code": code})
        time.sleep(0.001)  # each note has its microsecond
    assert crashes.recent(tmp_path) == 2
    assert told == [code for code in endings for _ in range(2)]


@pytest.mark.proof
@pytest.mark.parametrize("stage", ["canary_50", "bake"])
def test_a_challenger_that_ends_its_workers_is_off_within_seconds(home: Installation, stage: str) -> None:
    crashing = home.release(0.9, semver="3.0.0", crash_share=1.0)
    if stage == "bake":
        home.publish(champion=crashing, fallback=home.champion, rollout_id="r1", stage=stage)
    else:
        home.publish("split", challenger=crashing, share_ppm=500_000, stage=stage)
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    with bentoml_serve(home.home) as gateway:

        def switched_off() -> bool:
            try:
                httpx.post(f"{gateway.url}/v2/models/m/infer", json=body, timeout=10.0)
                routes = httpx.get(f"{gateway.url}/v1/routes", timeout=10.0).json()["routes"]
            except httpx.TransportError:
                return False
            return bool(routes) and routes[0]["effective"]["override"] is not None

        wait_until(switched_off, "the challenger is off")
        for _ in range(20):
            assert httpx.post(f"{gateway.url}/v2/models/m/infer", json=body).status_code == 200
    (override,) = home.events(Override)
    assert override.withdrawn == crashing
