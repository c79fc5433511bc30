"""The planner: within a factor two of what simulated rollouts need, and honest about what cannot be had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from pipelines.cli.gate import app
from pipelines.contracts.errors import ContractError
from pipelines.rollout.offline import judge
from pipelines.rollout.planner import Need, Rates, plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import Fault, Traffic, simulate
from tests.unit.stats.cases import METRICS, mapping

RATES: dict[str, Any] = {
    "requests_per_hour": 720,
    "labelled": 0.95,
    "metrics": {
        "error_rate": {"rate": 0.001},
        "invalid_score": {"rate": 0.0002},
        "latency_p50": {"sigma": 0.42},
        "logloss": {"mean": 0.53, "paired_sd": 0.2},
        "kpi": {"mean": 5.0, "sd": 2.0},
    },
}


def need(found: Any, metric: str, question: str) -> Need:
    return next(one for one in found.needs if (one.metric, one.question) == (metric, question))


def test_a_short_policy_is_not_feasible_and_says_why() -> None:
    found = plan(Policy.parse(mapping(100, 100)), Rates.parse(RATES))
    assert not found.feasible
    assert "prolong it or widen the margin" in need(found, "kpi", "proof").sentence


def test_a_long_policy_is_feasible() -> None:
    assert plan(Policy.parse(mapping(30_000, 30_000)), Rates.parse(RATES)).feasible


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "fault", "effect"),
    [("error_rate", Fault(error_rate=0.02, only_served=True), 20.0), ("kpi", Fault(kpi_factor=0.85), 0.75)],
)
def test_the_plan_is_within_a_factor_two_of_the_simulated_median(metric: str, fault: Fault, effect: float) -> None:
    """Fifteen rollouts straight into a canary of 20 %; the plan is asked for the very fault."""
    body = mapping() | {
        "stages": [{"name": "canary_20", "share": 0.2, "requests": 8000}],
        "metrics": [row for row in METRICS if row["name"] == metric],
        "label_maturity_s": 60,
        "slices": [],
    }
    policy = Policy.parse(body)
    seen = []
    for seed in range(15):
        last = judge(body, simulate(policy, seed=seed, traffic=Traffic(requests_per_s=0.2), fault=fault))[-1]
        assert last["verdict"] == "rollback"
        seen.append(last["exposed"])
    rates = Rates.parse(RATES | {"metrics": {metric: RATES["metrics"][metric] | {"effect": effect}}})
    planned = need(plan(policy, rates), metric, "harm").challenger_requests
    assert planned is not None
    assert 0.5 <= planned / float(np.median(seen)) <= 2.0, (planned, seen)


def test_a_missing_base_rate_is_named() -> None:
    rates = {"requests_per_hour": 10, "metrics": {}}
    with pytest.raises(ContractError, match=r"metrics.error_rate.rate"):
        plan(Policy.parse(mapping()), Rates.parse(rates))


def test_rates_of_an_unknown_metric_are_refused() -> None:
    with pytest.raises(ContractError, match="Did you mean 'error_rate'"):
        plan(Policy.parse(mapping()), Rates.parse(RATES | {"metrics": {"error_rat": {"rate": 0.1}}}))


def test_the_command_exits_1_when_a_proof_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(mapping(100, 100)), encoding="utf-8")
    (tmp_path / "base.json").write_text(json.dumps(RATES), encoding="utf-8")
    out = tmp_path / "plan.json"
    arguments = [
        "plan",
        "--policy",
        str(tmp_path / "policy.yaml"),
        "--rates",
        str(tmp_path / "base.json"),
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    body = json.loads(out.read_text(encoding="utf-8"))
    assert set(body["metrics"]["kpi"]) == {"challenger_requests", "requests", "hours", "feasible"}
