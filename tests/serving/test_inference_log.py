"""The inference log: epochs, rotation, torn tails, full disks, durability."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from pipelines.contracts import events, segments
from pipelines.contracts.events import Assignment, EventId, Label, Response
from serving.inference_log import InferenceLog, LogWriteError
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio


def label(event_id: EventId) -> Label:
    return Label(id=event_id, model="m", request_id="q", value=1.0, event_us=0, wall_us=0)


def numbers(folder: Path) -> list[int]:
    return [one.n for path in sorted(folder.glob("*.seg")) for one in segments.read_frames(path.read_bytes())]


async def test_every_start_is_a_later_epoch_and_leaves_the_old_files_alone(tmp_path: Path) -> None:
    (tmp_path / "gw" / "0-99999999999999999").mkdir(parents=True)
    first = InferenceLog(tmp_path, "gw", 0)
    first.append(label)
    first.close()
    before = {path: path.read_bytes() for path in first.folder.iterdir()}
    second = InferenceLog(tmp_path, "gw", 0)
    second.append(label)
    second.close()
    other = InferenceLog(tmp_path, "gw", 1)
    other.close()
    assert 99999999999999999 < first.epoch < second.epoch
    assert other.epoch < first.epoch
    assert {path: path.read_bytes() for path in first.folder.iterdir()} == before
    assert (first.folder / "closed").read_text() == "1", "the number of its events"


async def test_segments_rotate_by_size_without_losing_a_number(tmp_path: Path) -> None:
    log = InferenceLog(tmp_path, "gw", 0, segment_bytes=500)
    for _ in range(50):
        log.append(label)
    log.close()
    files = sorted(log.folder.glob("*.seg"))
    assert len(files) > 3
    assert all(path.stat().st_size < 700 for path in files)
    assert [int(path.stem) for path in files] == [next(iter(segments.read_frames(f.read_bytes()))).n for f in files]
    assert numbers(log.folder) == list(range(50))


async def test_segments_rotate_by_age(tmp_path: Path) -> None:
    log = InferenceLog(tmp_path, "gw", 0, segment_age_s=0.0)
    log.append(label)
    log.append(label)
    log.close()
    assert len(list(log.folder.glob("*.seg"))) == 2


async def test_a_torn_tail_ends_its_epoch_and_the_next_start_goes_on(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        for k in range(3):
            await running.infer(f"a{k}")
        (torn,) = running.gateway.log.folder.glob("*.seg")
    os.truncate(torn, torn.stat().st_size - 3)
    async with start() as running:
        await running.infer("b")
    assert [event.request_id for event in home.events(Assignment)] == ["a0", "a1", "a2", "b"]
    assert [event.request_id for event in home.events(Response)] == ["a0", "a1", "b"]


async def test_a_half_written_frame_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = InferenceLog(tmp_path, "gw", 0)
    log.append(label)
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))
    with pytest.raises(LogWriteError, match=r"7 of \d+ bytes"):
        log.append(label)
    monkeypatch.undo()
    log.append(label)
    log.close()
    assert numbers(log.folder) == [0, 1]


class FullDisk:
    """`os.write` that fails as a full disk does, for log frames from the k-th on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
        self._write = os.write
        self._left = after
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: Any) -> int:
        if b"kind" not in bytes(data):
            return self._write(descriptor, data)
        if self._left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._left -= 1
        return self._write(descriptor, data)


async def test_on_a_full_disk_the_champion_answers_unlogged_and_the_challenger_steps_back(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        with monkeypatch.context() as patch:
            FullDisk(patch)
            answer = await running.infer("q1")
            label_answer = await running.client.post("/v1/models/m/labels", json={"labels": [{"id": "q1", "value": 1}]})
        assert answer.status_code == 200
        parameters = answer.json()["parameters"]
        assert (parameters["arm"], parameters["logged"]) == ("champion", False)
        assert label_answer.status_code == 503
        assert label_answer.headers["retry-after"]
        assert home.events() == []
        after = (await running.infer("q2")).json()["parameters"]
        await running.shadows_done()
        assert (after["arm"], after["logged"]) == ("challenger", True)
        assert 'slipway_unlogged_total{model="m"} 1.0' in (await running.client.get("/metrics")).text
    assert [event.id.n for event in home.events()] == [0, 1, 2]


async def test_a_challengers_answer_that_cannot_be_logged_is_not_given(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        with monkeypatch.context() as patch:
            FullDisk(patch, after=1)
            answer = await running.infer("q1")
    assert answer.json()["parameters"]["arm"] == "champion"
    assert answer.json()["parameters"]["logged"] is False
    assert [type(event) for event in home.events()] == [Assignment]


async def test_durable_waits_for_the_fsync_that_covers_its_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = os.fdatasync

    def watched(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        fdatasync(descriptor)
        synced.append(size)

    log = InferenceLog(tmp_path, "gw", 0, fsync_ms=60_000)
    monkeypatch.setattr(os, "fdatasync", watched)
    log.append(label)
    (path,) = log.folder.glob("*.seg")
    assert synced == []
    await log.durable()
    assert synced == [path.stat().st_size]
    await log.durable()
    assert len(synced) == 1
    log.close()


async def test_a_failed_fsync_is_told_to_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = InferenceLog(tmp_path, "gw", 0, fsync_ms=60_000)

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log.append(label)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(LogWriteError, match="Input/output error"):
            await log.durable()
    log.close()


class SlowDisk:
    """An `fdatasync` that takes as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._let_go = threading.Event()
        self.began = threading.Event()
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self)

    def __call__(self, descriptor: int) -> None:
        self.began.set()
        self._let_go.wait()
        self._sync(descriptor)

    def recover(self) -> None:
        self._let_go.set()


async def test_on_a_slow_disk_the_champion_answers_unlogged_and_the_challenger_steps_back(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start({"slow_disk_ms": 100}) as running:
        disk = SlowDisk(monkeypatch)
        try:
            before = (await running.infer("q0")).json()["parameters"]
            await running.until(disk.began.is_set)
            await anyio.sleep(0.15)  # the fsync is now slower than the bound
            answer = (await running.infer("q1")).json()["parameters"]
            label_answer = await running.client.post("/v1/models/m/labels", json={"labels": [{"id": "q0", "value": 1}]})
        finally:
            disk.recover()
        assert (before["arm"], before["logged"]) == ("challenger", True)
        assert (answer["arm"], answer["logged"]) == ("champion", False)
        assert label_answer.status_code == 503, "no truth is acknowledged that is not on the disk"
        await running.until(lambda: not running.gateway.log.is_slow)
        after = (await running.infer("q2")).json()["parameters"]
        await running.shadows_done()
        assert (after["arm"], after["logged"]) == ("challenger", True)
        assert 'slipway_unlogged_total{model="m"} 1.0' in (await running.client.get("/metrics")).text
    assert {event.request_id for event in home.events()} == {"q0", "q2"}


async def test_an_answer_that_should_be_on_the_disk_says_when_it_is_not(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish()
    async with start({"slow_disk_ms": 50}, durability="power") as running:
        assert (await running.infer("q0")).json()["parameters"]["logged"] is True
        disk = SlowDisk(monkeypatch)
        try:
            answer = await running.infer("q1")
        finally:
            disk.recover()
        assert (answer.status_code, answer.json()["parameters"]["logged"]) == (200, False)


def test_the_events_of_the_log_are_those_of_the_contract(tmp_path: Path) -> None:
    log = InferenceLog(tmp_path, "gw", 3)
    event_id = log.append(label)
    log.close()
    (path,) = log.folder.glob("*.seg")
    assert path == segments.segment_path(tmp_path, "gw", 3, log.epoch, 0)
    (frame,) = segments.read_frames(path.read_bytes())
    assert events.decode(frame.payload) == label(event_id)
    assert event_id == EventId("gw", 3, log.epoch, 0)
