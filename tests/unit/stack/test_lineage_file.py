"""OpenLineage events of an installation go into a file of bounded size, whoever writes beside."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from pipelines.settings import Settings
from pipelines.stack import part_environment


def client(settings: Settings, **changed: Any) -> Any:
    """A client as Airflow's provider makes one of the installation's configuration."""
    from openlineage.client import OpenLineageClient

    transport = json.loads(part_environment(settings)["AIRFLOW__OPENLINEAGE__TRANSPORT"])
    return OpenLineageClient(config={"transport": transport | changed})


def event(number: int) -> Any:
    from openlineage.client.event_v2 import Job, Run, RunEvent, RunState

    return RunEvent(
        eventTime=datetime(2026, 1, 1, tzinfo=UTC).isoformat(),
        run=Run(runId=str(UUID(int=number))),
        job=Job(namespace="slipway", name="features.plane.build"),
        eventType=RunState.COMPLETE,
        producer="https://example.com/slipway",
    )


def runs(file: Path) -> list[int]:
    return [UUID(json.loads(line)["run"]["runId"]).int for line in file.read_text().splitlines()]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("AIRFLOW__OPENLINEAGE__TRANSPORT", raising=False)
    monkeypatch.delenv("OPENLINEAGE_DISABLED", raising=False)
    return Settings(home=tmp_path, openlineage=True)


def test_every_event_is_a_line_however_many_tasks_write_at_once(settings: Settings) -> None:
    def task(first: int) -> None:
        writer = client(settings)
        for number in range(first, first + 20):
            writer.emit(event(number))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(task, range(0, 80, 20)))
    assert sorted(runs(settings.logs_dir / "openlineage.jsonl")) == list(range(80))


def test_a_full_file_makes_room_and_the_newest_events_stay(settings: Settings) -> None:
    file, full = settings.logs_dir / "openlineage.jsonl", 4000
    writer = client(settings, max_bytes=full)
    for number in range(100):
        writer.emit(event(number))
    before = file.with_name("openlineage.jsonl.1")
    kept = runs(before) + runs(file)
    assert kept == list(range(kept[0], 100))
    assert max(one.stat().st_size for one in (file, before)) <= full
    assert len(list(file.parent.glob("openlineage*"))) == 2


def test_without_the_setting_nothing_is_told_and_another_transport_is_left_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = part_environment(settings.model_copy(update={"openlineage": False}))
    assert off["AIRFLOW__OPENLINEAGE__DISABLED"] == "True"
    monkeypatch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", "{}")
    assert "AIRFLOW__OPENLINEAGE__TRANSPORT" not in part_environment(settings)
