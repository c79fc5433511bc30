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
from pipelines.rollout.base_rates import Answers, measured
from pipelines.rollout.planner import Need, plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
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


def only(metric: dict[str, Any], stages: list[dict[str, Any]], **changes: Any) -> Policy:
    return Policy.parse({"stages": stages, "metrics": [metric], "label_maturity_s": 0} | changes)


def rates_of(name: str, **changes: Any) -> Rates:
    """The rates above for one metric; `effect` is the metric's."""
    effect = {"effect": changes.pop("effect")} if "effect" in changes else {}
    return Rates.parse(RATES | {"metrics": {name: RATES["metrics"][name] | effect}} | changes)


LOGLOSS = METRICS[5]
KPI = METRICS[6]
SHADOW = {"name": "shadow", "requests": 400}
CANARY = {"name": "canary_20", "share": 0.2, "requests": 400}


def test_nothing_is_compared_in_the_bake_and_a_backtest_takes_no_time() -> None:
    rates = rates_of("logloss")
    bare = plan(only(LOGLOSS, [SHADOW, CANARY]), rates)
    baked = plan(only(LOGLOSS, [SHADOW, CANARY, {"name": "bake", "requests": 90_000}]), rates)
    assert [one.sentence for one in baked.needs] == [one.sentence for one in bare.needs]
    assert (baked.requests, baked.hours) == (bare.requests, bare.hours) == (800, round(800 / 720, 3))
    tested = plan(only(LOGLOSS, [{"name": "backtest", "requests": 90_000}, SHADOW, CANARY]), rates)
    proof = need(tested, "logloss", "proof")
    assert (proof.stage, proof.requests, proof.hours) == ("backtest", 0, 0.0)


def test_labels_that_mature_late_and_a_least_time_are_part_of_the_answer() -> None:
    rates = rates_of("logloss")
    soon = need(plan(only(LOGLOSS, [SHADOW]), rates), "logloss", "proof")
    late = need(plan(only(LOGLOSS, [SHADOW], label_maturity_s=36_000), rates), "logloss", "proof")
    assert late.hours == pytest.approx((soon.hours or 0.0) + 10.0, abs=0.01)
    waited = need(plan(only(LOGLOSS, [SHADOW], min_event_time_s=86_400), rates), "logloss", "proof")
    assert waited.hours == pytest.approx(24.0)


def test_harm_too_small_to_be_found_says_from_which_size_on_it_is() -> None:
    stages = [SHADOW | {"requests": 4_000}, CANARY | {"requests": 4_000}]
    sparse = rates_of("error_rate", requests_per_hour=30)
    found = plan(only(METRICS[0], stages), sparse)
    harm = need(found, "error_rate", "harm")
    assert not harm.feasible
    assert harm.found_from is not None
    larger = rates_of("error_rate", requests_per_hour=30, effect=harm.found_from * 1.02)
    assert need(plan(only(METRICS[0], stages), larger), "error_rate", "harm").feasible
    assert f"which find {harm.found_from:.3g} and more" in harm.sentence


def test_a_proof_for_each_slice_costs_what_the_smallest_asks() -> None:
    stages = [SHADOW | {"requests": 900_000}]
    rates = rates_of("logloss", slices={"a": 0.9, "b": 0.1})
    whole = need(plan(only(LOGLOSS, stages), rates), "logloss", "proof")
    each = need(plan(only(LOGLOSS | {"per_slice": True}, stages), rates), "logloss", "proof")
    assert (each.requests or 0) == pytest.approx(10 * (whole.requests or 0), rel=0.01)


def test_a_kpi_cannot_be_proven_where_no_arm_is_drawn() -> None:
    found = plan(only(KPI, [SHADOW]), rates_of("kpi"))
    assert not found.feasible
    assert "cannot be had in these stages" in need(found, "kpi", "proof").sentence


def test_a_missing_base_rate_is_named() -> None:
    rates = {"requests_per_hour": 10, "metrics": {}}
    with pytest.raises(ContractError, match=r"metrics.error_rate.rate"):
        plan(Policy.parse(mapping()), Rates.parse(rates))


def test_a_metric_that_need_not_be_proven_is_left_out_where_nothing_is_known_of_it() -> None:
    known = {name: base for name, base in RATES["metrics"].items() if name != "invalid_score"}
    found = plan(Policy.parse(mapping()), Rates.parse(RATES | {"metrics": known}))
    assert found.unknown == {"invalid_score": "metrics.invalid_score.rate"}
    assert {need.metric for need in found.needs} == {"error_rate", "latency_p50", "logloss", "kpi"}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"metrics": {"error_rate": {"rate": 0}}}, r"metrics.error_rate.rate; got 0; .* \(k \+ 0.5\) / \(n \+ 1\)"),
        ({"metrics": {"error_rate": {"rate": 3}}}, r"metrics.error_rate.rate; got 3; expected a share"),
        ({"metrics": {"error_rate": {"rate": float("nan")}}}, r"metrics.error_rate.rate; got nan"),
        ({"metrics": {"latency_p50": {"sigma": 0}}}, r"metrics.latency_p50.sigma; got 0.0; expected a number above 0"),
        ({"metrics": {"kpi": {"mean": 5.0, "sd": -1}}}, r"metrics.kpi.sd; got -1.0"),
        ({"metrics": {"kpi": {"mean": 5.0, "sd": 1, "effect": 0}}}, r"metrics.kpi.effect; got 0.0"),
        ({"requests_per_hour": float("inf")}, "requests_per_hour inf"),
        ({"metrics": {"kpi": {"mean": -1.1, "sd": 1}}}, r"metrics.kpi.mean; got -1.1; .* range \[0, 10\]"),
        ({"units": 0}, "units; got 0; expected at least 1"),
        ({"slices": {"a": 4}}, r"slices.a; got 4.0; expected a share"),
    ],
)
def test_rates_that_no_traffic_has_are_refused(rates: dict[str, Any], message: str) -> None:
    metrics = {"metrics": RATES["metrics"] | rates.get("metrics", {})}
    with pytest.raises(ContractError, match=message):
        plan(Policy.parse(mapping()), Rates.parse(RATES | rates | metrics))


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


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_the_spread_of_latencies_is_measured_where_the_quantile_lies(q: float) -> None:
    rng, n = np.random.default_rng(3), 40_000
    nothing = np.full(n, np.nan)
    latency = 20.0 * np.exp(rng.normal(0.0, 0.4, n))
    metric = {"name": "slow", "kind": "quantile", "q": q, "harm_ratio": 1.2}
    policy = Policy.parse({"stages": [SHADOW], "metrics": [metric]})

    def sigma(latency_ms: Any) -> float:
        event_us = np.arange(n) * 1_000_000
        answers = Answers(event_us, np.zeros(n, dtype=bool), nothing, latency_ms, nothing, nothing)
        return measured(policy, answers).of("slow").sigma

    assert sigma(latency) == pytest.approx(0.4, rel=0.1)
    heavy = latency * np.where(rng.random(n) < 0.02, 1.0 + rng.pareto(1.5, n), 1.0)
    assert sigma(heavy) > (0.5 if q == 0.99 else 0.38)


def test_each_kpi_is_planned_by_the_values_of_its_own_name() -> None:
    rng, n = np.random.default_rng(5), 4_000
    nothing = np.full(n, np.nan)
    kpis = {"basket": rng.normal(80.0, 20.0, n), "clicks": rng.poisson(2.0, n).astype(float), "rare": nothing}
    policy = Policy.parse(
        {
            "stages": [SHADOW],
            "metrics": [{"name": name, "kind": "mean", "range": [-100, 300], "harm_rel": 0.1} for name in kpis],
        }
    )
    event_us = np.arange(n) * 1_000_000
    answers = Answers(event_us, np.zeros(n, dtype=bool), nothing, nothing, nothing, kpis["basket"], by_kpi=kpis)
    rates = measured(policy, answers)
    assert rates.of("basket").mean == pytest.approx(80.0, rel=0.02)
    assert rates.of("basket").sd == pytest.approx(20.0, rel=0.05)
    assert rates.of("clicks").mean == pytest.approx(2.0, rel=0.05)
    assert "rare" not in rates.metrics, "of which too little is known"
