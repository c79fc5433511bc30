"""Segments that were read leave the disk when they are old; `log verify` stays right, through a kill at any step."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pipelines.collect.completeness import check
from pipelines.contracts import segment_retention
from pipelines.contracts.events import Label
from pipelines.contracts.segment_folder import folder_of, scan, segment_starts, streams, survey
from pipelines.contracts.streams import Position, StreamKey
from pipelines.wiring.collect import Collector, collect_all, verify_log
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker

HOUR_S = 3600.0
KEY = StreamKey("gw0", 0, 1)


def serve(worker: Worker, installation: Installation, first: int, count: int) -> None:
    for number in range(first, first + count):
        worker.request(installation.route, f"q{number}", label=1.0)


def age(bus: Path, seconds: float) -> None:
    for path in bus.rglob("*.seg"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_the_lake_holds_leaves_the_disk_when_it_is_old_and_the_log_stays_whole(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "home")
    settings = installation.settings.model_copy(update={"log_retention_days": HOUR_S / 86_400})
    worker = Worker(installation.bus)
    for part in range(3):
        serve(worker, installation, part * 5, 5)
        if part < 2:
            worker.rotate()
    collect_all(settings)
    assert Collector(settings).remove_old_segments() == 0, "they are young"
    age(installation.bus, 2 * HOUR_S)
    worker.rotate()
    serve(worker, installation, 15, 5)  # not collected
    assert Collector(settings).remove_old_segments() == 2, "of three that were read, the last may yet be gone back to"
    assert len(segment_starts(installation.bus, KEY)) == 2
    assert all(report.whole for report in verify_log(settings))

    worker.close()
    Worker(installation.bus, epoch=2).close()
    collect_all(settings)
    age(installation.bus, 2 * HOUR_S)
    assert Collector(settings).remove_old_segments() == 3
    assert streams(installation.bus) == [StreamKey("gw0", 0, 2)], "the newest epoch keeps its folder: epochs only grow"
    assert all(report.whole for report in verify_log(settings))
    assert len(installation.stored()) == worker.n

    # On what is left, work goes on; and what somebody else takes away is missed.
    last = Worker(installation.bus, epoch=3)
    serve(last, installation, 20, 5)
    last.rotate()
    serve(last, installation, 25, 5)
    collect_all(settings)
    assert all(report.whole for report in verify_log(settings))
    min((folder_of(installation.bus, StreamKey("gw0", 0, 3))).glob("*.seg")).unlink()
    assert [report.stream for report in verify_log(settings) if not report.whole] == ["gw0/0-3"]


class Death(BaseException):
    """The process dies here."""


def read_to_the_end(bus: Path) -> dict[StreamKey, Position]:
    positions: dict[StreamKey, Position] = {}
    while (now := positions | scan(bus, positions, quiet_s=0).positions) != positions:
        positions = now
    return positions


@pytest.mark.parametrize("steps", range(9))
def test_a_kill_at_any_step_leaves_nothing_missing_and_the_next_pass_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    worker = Worker(tmp_path)
    for _ in range(3):
        for _ in range(4):
            worker.append(Label, model="m", request_id="q", value=1.0)
        worker.rotate()
    worker.close()
    Worker(tmp_path, epoch=2)
    positions = read_to_the_end(tmp_path)
    left = steps

    def dying(real):
        def step(*args, **kwargs):
            nonlocal left
            if not left:
                raise Death
            left -= 1
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir", "replace"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        with suppress(Death):
            segment_retention.remove_read(tmp_path, positions, time.time() + 1)
    reports = check(survey(tmp_path), positions, [], {KEY: np.arange(worker.n)}, {})
    assert [report for report in reports if not report.whole] == []
    segment_retention.remove_read(tmp_path, positions, time.time() + 1)
    assert streams(tmp_path) == [StreamKey("gw0", 0, 2)]
