"""False stops on healthy rollouts, looked at all the time: the gates hold their budget, and broken judges do not.

Sizes are those of continuous integration; `make proof` runs `benchmarks/gates.py` at full length.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks.proof.broken import JUDGES
from benchmarks.proof.policies import policy
from benchmarks.proof.runs import Job, JudgeOf, play
from pipelines.cli.gate import app
from pipelines.rollout.catalogue import FAULTS, INFEASIBLE, TRAPS, rates, upper_bound
from pipelines.rollout.offline import judge
from pipelines.rollout.simulator import HEALTHY, Fault
from pipelines.rollout.traffic import Traffic
from tests.unit.stats.cases import mapping

RUNS = 1000
BODY = mapping(500, 700, warmup_requests=100)
TRAFFIC = Traffic(requests_per_s=0.2, error_rate=0.02, label_delay_s=300.0)
MOVING = Traffic(
    requests_per_s=0.2, error_rate=0.02, label_delay_s=300.0, early_positives=True, drift=0.5, wave=1500
)  # fmt: skip
"""Both arms drift together, and positive labels are known first: nothing is wrong with the challenger."""


def played(
    traffic: Traffic, fault: Fault, runs: int, seed: int, *, body: dict[str, Any] = BODY, judge_of: JudgeOf = judge
) -> list[dict[str, Any]]:
    jobs = [Job(key=str(n), policy=body, seed=seed + n, traffic=traffic, fault=fault) for n in range(runs)]
    return [play(job, judge_of) for job in jobs]


def holds(judge_of: JudgeOf) -> tuple[bool, dict[str, Any]]:
    """The check every judge has to pass: exact 95 % upper bounds of false rollbacks and of false holds below 1 %.

    It is over with the first stop that leaves no way to pass, however the rest of the rollouts would end.
    """
    stops, found = Counter[str](), list[dict[str, Any]]()
    for n in range(RUNS):
        found += played(MOVING, HEALTHY, 1, 1 + n, judge_of=judge_of)
        stops[found[-1]["verdict"]] += 1
        if any(upper_bound(stops[stop], RUNS) > 0.01 for stop in ("rollback", "hold")):
            return False, rates(found)
    return True, rates(found)


@pytest.mark.slow
def test_healthy_rollouts_are_stopped_in_less_than_one_percent_with_confidence() -> None:
    passed, found = holds(judge)
    assert passed, found


@pytest.mark.parametrize("name", JUDGES)
def test_a_broken_judge_fails_the_check_that_the_gates_pass(name: str) -> None:
    passed, found = holds(JUDGES[name])
    assert not passed, found


def test_rare_slowness_in_a_small_canary_is_rolled_back_by_its_blocks() -> None:
    """Two requests of a hundred are slow, and six of a block are the challenger's: most blocks show none of them."""
    body = policy(60_000, shadow=False, shares=(0.05,))
    found = play(Job(key="tail", policy=body, seed=1, fault=Fault(tail_factor=5.0)))
    assert (found["verdict"], found["metric"]) == ("rollback", "latency_p99")


def test_sticky_units_of_which_some_are_sick_are_promoted_when_the_last_stage_may_go_on() -> None:
    traffic = TRAPS["sticky units, some sick"]
    found = play(Job(key="units", policy=policy(20_000, unit="unit"), seed=1, traffic=traffic, prolonged=2))
    assert found["verdict"] == "promote"
    assert found["seq"] < 100_000


def test_the_catalogue_is_as_large_as_it_says() -> None:
    assert len(FAULTS) >= 30
    assert len(TRAPS) >= 8
    assert not set(FAULTS) & (set(INFEASIBLE) | set(TRAPS))


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
    verdicts = Counter(row["verdict"] for row in played(traffic, HEALTHY, 12, 100, body=body))
    assert not verdicts["rollback"] + verdicts["hold"], verdicts


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
    found = rates(played(TRAFFIC, fault, 8, 500))
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
