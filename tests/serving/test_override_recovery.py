"""An override that was cut short is still in force after the restart, and no worker waits for it."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from pathlib import Path

import pytest

from pipelines.contracts import segments
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.events import Override
from pipelines.contracts.routes import Breaker
from serving.override_recovery import logged_overrides, may_be_found
from serving.overrides import OverrideStore
from tests.serving.conftest import TOKEN, Installation, Running, Start
from tests.serving.test_inference_log import FullDisk

pytestmark = pytest.mark.anyio

BEARER = {"authorization": f"Bearer {TOKEN}"}


def nothing_is_filed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the worker is killed, as it were, between an override's event and its file."""

    def refuse(*_: object) -> None:
        raise OSError("killed")

    monkeypatch.setattr(OverrideStore, "publish", refuse)
    monkeypatch.setattr(OverrideStore, "persist", refuse)


def left_by_a_kill(home: Installation, folder: Path) -> Installation:
    """The installation as the disk has it at this moment, which is what a killed process leaves."""
    shutil.copytree(home.home, folder)
    copy = Installation(folder)
    copy.version = home.version
    return copy


@pytest.mark.parametrize("torn", [0, 5])
async def test_a_trip_whose_file_was_never_written_is_taken_up_from_the_log(
    home: Installation, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    bad = home.release(0.7, semver="2.0.0", error=True)
    home.publish("split", share_ppm=1_000_000, challenger=bad, breaker=Breaker(window=10, failures=3))
    with monkeypatch.context() as patch:
        nothing_is_filed(patch)
        async with start() as running:
            for k in range(5):
                assert (await running.infer(f"q{k}")).status_code == 200
            (override,) = home.events(Override)
            after = left_by_a_kill(home, tmp_path / "after")
            assert list((after.home / "gateway" / "gw0" / "overrides").iterdir()) == []
            patch.undo()  # so that it ends in order
    if torn:
        (segment,) = (after.home / "bus").rglob("*.seg")
        segment.write_bytes(segment.read_bytes() + segments.frame(99, b"x" * 20)[:-torn])
    (after.home / "bus" / "gw0" / "0-9999999999999998").mkdir()  # a start that was killed before its first event
    (after.home / "control.db").unlink()
    async with start(at=after, gateway_workers=2) as running:
        effective = running.gateway.table.plans["m"].effective
        assert (effective.override, effective.champion) == (str(override.id), home.champion)
        assert (await running.infer("later")).json()["parameters"]["arm"] == "champion"
        (file,) = running.gateway.overrides.folder.glob("*.json")
        assert file.exists(), "and the other workers find it as any other"
    assert len(after.events(Override)) == 1, "one trip is one event"


async def test_a_champion_withdrawn_by_hand_stays_withdrawn(
    home: Installation, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish(champion=home.challenger, fallback=home.champion)
    with monkeypatch.context() as patch:
        nothing_is_filed(patch)
        async with start() as running:
            refused = await running.client.post("/v1/models/m/rollback", headers=BEARER)
            assert refused.status_code == 503, "it is not durable"
            assert "in force in this worker" in refused.json()["error"]
            after = left_by_a_kill(home, tmp_path / "after")
            patch.undo()
    async with start(at=after) as running:
        assert (await running.infer("q")).json()["parameters"]["release"] == home.champion


async def test_what_a_decision_has_cleared_is_not_taken_up_again(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        override = (await running.client.post("/v1/models/m/rollback", headers=BEARER)).json()["override"]
        home.publish("split", share_ppm=1_000_000, clears_overrides=[override])
        await running.in_force(2)
        home.publish("split", share_ppm=1_000_000)
        await running.in_force(3)
        epoch = running.gateway.log.folder
    (epoch / "closed").unlink()
    assert [str(held.event.id) for held in logged_overrides(epoch.parent, epoch.parent / "0-1")] == [override]
    async with start() as running:
        assert running.gateway.table.plans["m"].effective.override is None


async def test_an_epoch_that_ended_in_order_is_not_read(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        await running.client.post("/v1/models/m/rollback", headers=BEARER)
        epoch = running.gateway.log.folder
    assert list(logged_overrides(epoch.parent, epoch.parent / "0-1")) == []


async def test_a_trip_that_the_disk_refuses_is_written_when_it_takes_it_again(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway._PERSIST_AGAIN_S", 0.02)
    bad = home.release(0.7, semver="2.0.0", error=True)
    home.publish("split", share_ppm=1_000_000, challenger=bad, breaker=Breaker(window=10, failures=3))
    async with start() as running, start() as other_worker:
        with monkeypatch.context() as patch:
            nothing_is_filed(patch)
            for k in range(3):
                await running.infer(f"q{k}")
            assert running.gateway.table.plans["m"].effective.override is not None, "acts first"
            assert other_worker.gateway.table.plans["m"].effective.override is None
        await other_worker.until(lambda: other_worker.gateway.table.plans["m"].effective.override is not None)


async def test_on_a_full_disk_a_rollback_is_obeyed_here_and_written_when_there_is_room(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.gateway._PERSIST_AGAIN_S", 0.02)
    monkeypatch.setattr("serving.rollback._PATIENCE_S", 0.05)
    home.publish(champion=home.challenger, fallback=home.champion)
    async with start() as running, start() as other_worker:
        with monkeypatch.context() as patch:
            FullDisk(patch)
            for _ in range(2):
                refused = await running.client.post("/v1/models/m/rollback", headers=BEARER, json={"actor": "ann"})
                assert refused.status_code == 503
                assert "in force in this worker" in refused.json()["error"]
            answer = (await running.infer("q")).json()["parameters"]
            assert (answer["release"], answer["logged"]) == (home.champion, False)
            assert home.events() == []
        await running.until(lambda: len(home.events(Override)) == 1)
        (override,) = home.events(Override)
        done = await running.client.post("/v1/models/m/rollback", headers=BEARER)
        assert (done.status_code, done.json()["override"]) == (200, str(override.id))
        assert (override.actor, override.withdrawn) == ("ann", home.challenger)
        await other_worker.until(lambda: other_worker.gateway.standing_override("m") == str(override.id))
        (held,) = running.gateway.overrides.of("m")
        assert held.event == override, "known under one name alone"


async def test_the_file_of_a_settled_override_goes_when_its_event_can_no_longer_be_found(
    home: Installation, start: Start, tmp_path: Path
) -> None:
    files = home.home / "gateway" / "gw0" / "overrides"
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        done = await running.client.post("/v1/models/m/rollback", headers=BEARER, json={"actor": "ann"})
        before = left_by_a_kill(home, tmp_path / "unsettled")
        home.publish("split", share_ppm=1_000_000, clears_overrides=[done.json()["override"]])
        await running.in_force(2)
        home.publish("split", share_ppm=1_000_000)
        await running.in_force(3)
        after = left_by_a_kill(home, tmp_path / "settled")
    # Not settled, or settled but still at the end of a killed worker's log: the file stays.
    for killed, stands in ((before, True), (after, False)):
        async with start(at=killed, log_retention_days=1e-9) as running:
            await settle(running)
            assert (running.gateway.standing_override("m") is not None) is stands
            assert len(list((killed.home / "gateway" / "gw0" / "overrides").glob("*.json"))) == 1
    async with start(log_retention_days=1) as running:
        await settle(running)
        assert len(list(files.glob("*.json"))) == 1, "it is young"
    async with start(log_retention_days=1e-9) as running:
        await running.until(lambda: not list(files.glob("*.json")))
        assert (await running.infer("q")).json()["parameters"]["arm"] == "challenger"
    async with start() as running:
        assert running.gateway.standing_override("m") is None


async def settle(running: Running) -> None:
    """Wait for a look at the settled overrides: the one at the start, or another."""
    gateway = running.gateway
    before_us = wall_us() - round(gateway.settings.log_retention_days * 86_400_000_000)
    await asyncio.to_thread(
        gateway.overrides.remove_settled, before_us, partial(may_be_found, gateway.log.folder.parent)
    )
