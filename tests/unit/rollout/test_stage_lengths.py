"""Stages of `requests: auto`: long enough for the proofs at the model's traffic, frozen when a rollout starts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.gate_plan import show
from pipelines.contracts.errors import ContractError
from pipelines.rollout.bars import levels
from pipelines.rollout.planner import plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
from pipelines.rollout.reach import shortfalls
from pipelines.rollout.stage_lengths import LEAST, settle
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from pipelines.wiring.gate_plan import plan_model
from tests.builders import constant_release

METRICS: list[dict[str, Any]] = [
    {"name": "error_rate", "kind": "event", "promote_margin_abs": 0.005, "weight": 0.3},
    {"name": "logloss", "kind": "paired_loss", "promote_margin_rel": 0.02, "weight": 0.3},
]
POLICY: dict[str, Any] = {
    "label_maturity_s": 86_400,
    "stages": [
        {"name": "backtest"},
        {"name": "shadow", "requests": "auto"},
        {"name": "canary_10", "share": 0.1, "requests": "auto"},
        {"name": "canary_50", "share": 0.5, "requests": "auto"},
        {"name": "bake", "requests": "auto"},
    ],
    "metrics": METRICS,
}
RATES = Rates.parse(
    {
        "requests_per_hour": 100,
        "labelled": 0.9,
        "metrics": {"error_rate": {"rate": 0.001}, "logloss": {"mean": 0.45, "paired_sd": 0.27}},
    }
)


def test_automatic_stages_are_as_long_as_the_proofs_need() -> None:
    mapping, lengths = settle(POLICY, RATES)
    policy = Policy.parse(mapping)
    assert plan(policy, RATES).feasible
    assert lengths["shadow"] > LEAST, "pairs are proven in shadow, where nobody is exposed"
    assert lengths["canary_10"] == lengths["canary_50"]
    assert lengths["bake"] == 2_400, "a day of labels at 100 requests an hour"
    shorter = copy.deepcopy(mapping)
    for stage in shorter["stages"][1:]:
        stage["requests"] = stage["requests"] // 2
    assert not plan(Policy.parse(shorter), RATES).feasible


def test_a_policy_with_numbers_stays_as_it_is() -> None:
    mapping, _ = settle(POLICY, RATES)
    assert settle(mapping, RATES) == (mapping, {})


def test_a_proof_that_no_length_gives_is_an_error() -> None:
    greedy = POLICY | {"metrics": [METRICS[1] | {"promote_margin_rel": 1e-6}]}
    with pytest.raises(ContractError, match="Widen its margin"):
        settle(greedy, Rates.parse({"requests_per_hour": 1, "metrics": {"logloss": {"mean": 0.4, "paired_sd": 0.3}}}))


def short_policy(**shadow: Any) -> Policy:
    stages = [{"name": "shadow", "requests": 2_000} | shadow, {"name": "canary_50", "share": 0.5, "requests": 100}]
    return Policy.parse(POLICY | {"stages": stages, "metrics": [METRICS[1]]})


def test_what_is_out_of_reach_is_told_with_what_would_do() -> None:
    [short] = shortfalls(short_policy(), RATES)
    assert short.metric == "logloss"
    assert short.sentence.startswith("logloss +2 % needs ")
    assert "labelled pairs" in short.sentence
    assert "at 2,160/day; stage shadow is 20 hours. Lengthen it to " in short.sentence
    requests = int(short.sentence.split("Lengthen it to ")[1].split(" requests")[0].replace(",", ""))
    assert shortfalls(short_policy(requests=requests), RATES) == []
    margin = float(short.sentence.split("widen the margin to ")[1].split(" %")[0]) / 100
    widened = POLICY | {"metrics": [METRICS[1] | {"promote_margin_rel": margin}]}
    widened["stages"] = short_policy().to_mapping()["stages"]
    assert shortfalls(Policy.parse(widened), RATES) == []


def test_a_stage_that_outlasts_its_time_limit_is_told() -> None:
    [short] = shortfalls(short_policy(requests=50_000, max_wait_s=86_400), RATES)
    assert short.stage == "shadow"
    assert short.sentence.startswith("stage shadow: 50,000 requests take 21 days at 2,400/day; max_wait is 24 hours. ")
    assert short.sentence.endswith("Set max_wait to 21 days or requests to 2,400")


def test_a_proof_on_served_answers_asks_for_a_stage_that_serves() -> None:
    kpi = {"name": "kpi", "kind": "mean", "range": [0, 10], "promote_margin_rel": 0.1}
    policy = Policy.parse(POLICY | {"stages": [{"name": "shadow", "requests": 9}], "metrics": [kpi]})
    rates = Rates.parse({"requests_per_hour": 1, "metrics": {"kpi": {"mean": 5, "sd": 2}}})
    assert "add a canary or ab stage" in shortfalls(policy, rates)[0].sentence


SPEC: dict[str, Any] = {
    "name": "m",
    "owner": "a@example.com",
    "description": "A model of one input.",
    "task": "binary",
    "requests": {"datasets": ["d"], "transform": "m.py:requests"},
    "labels": {"datasets": ["d"], "transform": "m.py:labels", "maturity": "1d event_time"},
    "inputs": {"x": {"datatype": "FP64"}},
    "input_features": ["x"],
    "output": {"score": "score", "low": 0.0, "high": 1.0},
    "training": {"trainer": "lightgbm", "split": {"validation": "1d event_time", "test": "1d event_time",
                                                  "gap": "1h event_time"}},
    "traffic": {"requests_per_day": 2400, "labelled": 0.9,
                "base_rates": {"logloss": {"mean": 0.45, "paired_sd": 0.27}}},
    "rollout": {
        "approvers": ["anna"],
        "max_wait": "90d event_time",
        "stages": POLICY["stages"],
        "policy": {"schema": "slipway-gate/1", "metrics": METRICS},
    },
}  # fmt: skip


def installed(home: Path, **changes: Any) -> Settings:
    """A home whose only model is `m`."""
    (home / "include" / "models").mkdir(parents=True)
    (home / "include" / "models" / "m.yaml").write_text(yaml.safe_dump(SPEC | changes))
    return Settings(home=home, include_dir=home / "include")


def test_a_rollout_starts_with_its_automatic_stages_settled_and_explains_them(tmp_path: Path) -> None:
    settings = installed(tmp_path)
    rollout = rollouts.start(settings, "m", constant_release(settings.releases, "m", 0.3), actor="anna")
    planned = plan_model(settings, "m")
    assert {stage.name: stage.requests for stage in rollout.plan.stages if stage.requests} == planned.settled
    assert rollout.plan.settled.source == "the spec"
    assert rollout.policy_digest == rollout.plan.digest()
    lines = rollouts.explain(settings, rollout.id)
    assert f"shadow lasts {planned.settled['shadow']:,} requests (auto, planned on traffic of the spec)" in lines


def test_a_printed_plan_cuts_no_number_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = plan_model(installed(tmp_path), "m")
    for columns in ("200", "80", "40"):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setenv("TTY_COMPATIBLE", str(int(columns == "40")))
        show(planned)
        told = capsys.readouterr().out
        assert "…" not in told
        if columns != "40":
            assert all(f"{need.requests:,}" in told for need in planned.needs if need.requests)


def test_without_any_traffic_an_automatic_stage_cannot_start(tmp_path: Path) -> None:
    settings = installed(tmp_path, traffic=None)
    with pytest.raises(ContractError, match="Declare `traffic`"):
        rollouts.start(settings, "m", constant_release(settings.releases, "m", 0.3), actor="anna")


def test_a_backtest_and_a_bake_have_a_tenth_of_the_budget_unless_the_spec_says_otherwise(tmp_path: Path) -> None:
    rollout = copy.deepcopy(SPEC["rollout"])
    rollout["policy"]["kpi_maturity"] = "10m event_time"
    lasting = [{"name": "shadow", "requests": 900}, {"name": "canary_50", "share": 0.5, "requests": 900}]
    rollout["stages"] = [{"name": "backtest"}, *lasting, {"name": "bake", "requests": 10}]
    told = plan_model(installed(tmp_path / "usual", rollout=rollout), "m")
    spent = told.to_mapping()["levels"]
    assert spent == pytest.approx(
        {"from the start": 0.005, "backtest": 0.0005, "shadow": 0.002, "canary_50": 0.002, "bake": 0.0005}
    )
    assert told.policy.kpi_maturity_s == 600.0
    rollout["stages"][3]["weight"] = 0.4
    told = plan_model(installed(tmp_path / "late", rollout=rollout), "m")
    assert levels(told.policy) == pytest.approx(
        {"from the start": 0.005, "backtest": 0.001, "shadow": 0.001, "canary_50": 0.001, "bake": 0.002}
    )
