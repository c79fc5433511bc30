"""Batch scores over the real sample: which requests are open, who scores them, and what a second run leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.batch_scores import file_of, find
from pipelines.contracts.clocks import from_us, parse_event_time
from pipelines.settings import PROJECT, Settings
from pipelines.wiring import batch_scores, datasets, rollouts
from tests.builders import constant_release

MODEL = "late_arrival"
NOON = parse_event_time("2013-01-03T12:00:00Z")
HOUR = 3_600_000_000


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An installation with the flights announced until noon of January 3rd, and a constant champion."""
    home: Path = tmp_path_factory.mktemp("scores")
    made = Settings(home=home, include_dir=PROJECT / "include", clock="replay")
    made.event_clock().tick(NOON)
    datasets.ingest(made, "flights_scheduled", NOON)
    return made


@pytest.fixture(scope="module")
def champion(settings: Settings) -> str:
    assert batch_scores.score(settings, MODEL, NOON) == batch_scores.BatchScored(scored=False)
    release = constant_release(settings.releases, MODEL, 0.25)
    rollout = rollouts.start(settings, MODEL, release, actor="approver")
    rollouts.approve(settings, rollout.id, "approver")
    rollouts.advance(settings, rollout.id)
    return release


def test_every_announced_flight_that_is_not_yet_asked_about_gets_one_score(settings, champion):
    made = batch_scores.score(settings, MODEL, NOON)
    rows = DeltaLake(settings.lake).read(made.table, where=f"as_of = TIMESTAMPTZ '{from_us(NOON).isoformat()}'")
    assert (made.scored, made.release) == (True, champion)
    assert rows.num_rows == made.rows > 500
    assert len(set(rows.column("request_id").to_pylist())) == rows.num_rows
    asked = rows.column("event_timestamp").to_pylist()
    assert from_us(NOON) < min(asked)
    assert max(asked) <= from_us(NOON + 24 * HOUR)
    assert set(rows.column("score").to_pylist()) == {0.25}
    assert set(rows.column("release").to_pylist()) == {champion}


def test_the_gateway_finds_each_score_by_its_request(settings, champion):
    made = batch_scores.score(settings, MODEL, NOON)
    rows = DeltaLake(settings.lake).read(made.table, where=f"as_of = TIMESTAMPTZ '{from_us(NOON).isoformat()}'")
    for request_id in rows.column("request_id").to_pylist()[::100]:
        found = find(file_of(settings.root, MODEL), request_id)
        assert found is not None
        assert (found.outputs["score"], found.release, found.as_of_us) == (0.25, champion, NOON)


def test_a_second_run_of_the_day_replaces_the_first_and_leaves_other_days(settings, champion):
    batch_scores.score(settings, MODEL, NOON - 24 * HOUR)
    first = batch_scores.score(settings, MODEL, NOON - 2 * HOUR)
    second = batch_scores.score(settings, MODEL, NOON)
    rows = DeltaLake(settings.lake).read(second.table, ["as_of"])
    made_at = rows.column("as_of").to_pylist()
    assert made_at.count(from_us(NOON)) == second.rows
    assert made_at.count(from_us(NOON - 24 * HOUR)) > 0
    assert set(made_at) == {from_us(NOON), from_us(NOON - 24 * HOUR)}
    assert first.rows != second.rows
