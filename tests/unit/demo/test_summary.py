"""The report of a rehearsal, from what its driver saw."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipelines.adapters.control_db import ReleaseRow
from pipelines.demo.rehearsal import Seen
from pipelines.demo.summary import rollout_summary
from pipelines.wiring.collect import collect_once
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import START_US, Worker


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    made = Installation(tmp_path)
    row = ReleaseRow(
        model="m",
        digest=made.challenger,
        semver="1.1.0",
        status="registered",
        mlflow_run="",
        metrics={},
        training_set="",
        spec_digest="",
        created_us=START_US,
    )
    made.db.put_release(row)
    return made


def test_the_history_of_a_rollout_holds_the_e_values_that_its_verdicts_had(installation: Installation) -> None:
    worker, rng = Worker(installation.bus), random.Random(3)
    seen = Seen(installation.settings, installation.rollout)
    for part in range(3):
        for number in range(150):
            fails = frozenset({"challenger"}) if rng.random() < 0.02 else frozenset[str]()
            worker.request(installation.route, f"{part}-{number}", fails=fails, score=rng.random())
        collect_once(installation.settings)
        seen.read()
    summary = rollout_summary(installation.settings, installation.rollout, seen.history)
    assert [look["requests"] for look in summary["history"]] == [0, 150, 300, 450]
    last = {verdict["metric"]: verdict["e_value"] for verdict in summary["verdicts"]}
    assert summary["history"][-1]["e_values"] == last
    assert last["error_rate"] > summary["history"][1]["e_values"]["error_rate"] > 0
    assert "error_rate" in summary["charts"][0]
