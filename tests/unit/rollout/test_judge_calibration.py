"""False stops on healthy rollouts, looked at all the time: the gates hold their budget, and broken judges do not.

Sizes are those of continuous integration; `make proof` runs `benchmarks/gates.py` at full length.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.gates import peeking_z, run
from pipelines.cli.gate import app
from pipelines.rollout.catalogue import rates, upper_bound
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, START_US, Fault, Traffic, simulate
from pipelines.stats.nats import Floats
from tests.unit.stats.cases import mapping

RUNS = 320
BODY = mapping(500, 700, warmup_requests=100)
TRAFFIC = Traffic(requests_per_s=0.2, error_rate=0.02, label_delay_s=300.0)


def jobs(traffic: Traffic, fault: Fault, number: int, seed: int, body: dict[str, Any] | None = None) -> list[Any]:
    return [(body or BODY, seed + n, traffic, fault, False) for n in range(number)]


def holds(false_stops: int, runs: int) -> bool:
    """The check every judge has to pass: the exact 95 % upper bound of false stops lies below 1 %."""
    return upper_bound(false_stops, runs) <= 0.01


@pytest.mark.slow
def test_healthy_rollouts_are_stopped_in_less_than_one_percent_with_confidence() -> None:
    found = rates(run(jobs(TRAFFIC, HEALTHY, RUNS, 1), 1))
    assert found["rollback_upper_95"] <= 0.01, found
    assert found["hold_upper_95"] <= 0.01, found


@pytest.mark.parametrize(
    "traffic",
    [
        Traffic(requests_per_s=0.2, cold_start=90),
        Traffic(requests_per_s=0.2, outage=0.4),
        Traffic(requests_per_s=0.2, spike=6.0),
        Traffic(requests_per_s=0.2, early_positives=True),
        Traffic(requests_per_s=0.2, arm_noise=0.15),
        Traffic(requests_per_s=0.2, units=150, sick_units=0.05),
    ],
    ids=["cold start", "shared outage", "latency spike", "early positives", "noise local to an arm", "sticky units"],
)
def test_healthy_traps_stop_nothing(traffic: Traffic) -> None:
    body = BODY | {"unit": "unit"} if traffic.units else BODY
    verdicts = Counter(row["verdict"] for row in run(jobs(traffic, HEALTHY, 12, 100, body), 1))
    assert not verdicts["rollback"] + verdicts["hold"], verdicts


def test_a_z_test_that_peeks_fails_the_check() -> None:
    """At 5 %, looked at every minute, on ordinary error rates."""
    traffic = Traffic(requests_per_s=0.2, error_rate=0.1)
    rollouts = (_answers(simulate(Policy.parse(BODY), seed=n, traffic=traffic)) for n in range(60))
    stops = sum(peeking_z(rows, every=1, level=1.96) for rows in rollouts)
    assert not holds(stops, 60)
    assert stops > 3


def test_labels_used_as_they_arrive_fail_the_check() -> None:
    """Positives come first: a bet on the share of positives among the labels seen so far stops healthy rollouts."""
    early = Traffic(requests_per_s=0.2, early_positives=True)
    stops = 0
    for seed in range(20):
        labels = simulate(Policy.parse(BODY), seed=seed, traffic=early)["labels"]["label"].to_numpy()
        base = 0.25 + 0.05
        log_e = np.cumsum(np.log(np.where(labels > 0, 1.4, (1 - 1.4 * base) / (1 - base))))
        stops += bool(log_e.max() > np.log(100))
    assert not holds(stops, 20)


def test_a_champion_that_is_not_concurrent_fails_the_check() -> None:
    """The challenger against all champion traffic of the ramp, while the level drifts: a z-test at one in a million."""
    stops = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        level = 5.0 + np.linspace(0.0, 1.0, 4000)
        share = np.repeat([0.05, 0.2, 0.5, 0.5], 1000)
        arm, value = rng.random(4000) < share, level + rng.normal(0.0, 1.0, 4000)
        stops += _z(value[arm], value[~arm]) > 4.9
    assert not holds(stops, 20)


def _z(one: Floats, zero: Floats) -> float:
    return float(abs(one.mean() - zero.mean()) / np.sqrt(one.var() / len(one) + zero.var() / len(zero)))


def _answers(tables: dict[str, pa.Table]) -> dict[str, Any]:
    arm = np.asarray(tables["assignments"]["arm"].cast(pa.string()).to_pylist())
    answers = tables["responses"]
    request = answers["request_id"].to_numpy()
    keep = arm[request] != "both"
    return {
        "minute": (answers["ts"].cast(pa.int64()).to_numpy()[keep] - START_US) // 60_000_000,
        "challenger": arm[request[keep]] == "challenger",
        "error": np.asarray(answers["status"].cast(pa.string()).to_pylist())[keep] == "error",
    }


@pytest.mark.parametrize(
    ("fault", "metric"),
    [
        (Fault(error_rate=0.2, only_served=True), "error_rate"),
        (Fault(invalid_rate=0.1), "invalid_score"),
        (Fault(logit_noise=4.0), "logloss"),
        (Fault(logit_shift=3.0), "logloss"),
        (Fault(kpi_factor=0.6), "kpi"),
        (Fault(share_factor=1.8), "sample_ratio"),
        (Fault(lost=0.05), "lost_responses"),
        (Fault(doubled=0.05), "duplicates"),
        (Fault(error_rate=0.3, begins=1300), "error_rate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_fault_is_stopped_by_its_metric(fault: Fault, metric: str) -> None:
    found = rates(run(jobs(TRAFFIC, fault, 8, 500), 1))
    assert found["rollback"] + found["hold"] == 1.0, found
    assert found["by"] == {metric: 8}, found


def test_the_command_says_how_a_policy_behaves(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(mapping(400, 400)), encoding="utf-8")
    arguments = ["simulate", "--policy", str(tmp_path / "policy.yaml"), "--runs", "3", "--what"]
    result = CliRunner().invoke(app, [*arguments, "errors .1 -> 5 %"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["rollback"] == 1.0
    unknown = CliRunner().invoke(app, [*arguments, "errors .1 -> 4 %"])
    assert "Did you mean 'errors .1 -> 5 %'" in str(unknown.exception)
