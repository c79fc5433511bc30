"""The planner against rollouts that are played out: within a factor two of the median, for every kind of metric."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from pipelines.rollout.offline import judge
from pipelines.rollout.planner import plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
from pipelines.rollout.walk import Question
from tests.unit.rollout.planned_traffic import base_rates, outcomes, tables

RUNS = 11


class Case(NamedTuple):
    """A metric, the question asked of it, and the traffic: requests a second, event rate, size of the harm."""

    metric: dict[str, Any]
    question: Question
    requests: int
    share: float | None = None
    per_s: float = 0.2
    rate: float = 0.01
    harm: float = 1.0
    worse: float = 0.0
    units: int = 0
    slices: int = 0


ERRORS = {"name": "m", "kind": "event", "weight": 0.25}
SLOW = {"name": "m", "kind": "quantile", "q": 0.5, "weight": 0.125}
LOSS = {"name": "m", "kind": "paired_loss", "weight": 0.2}
KPI = {"name": "m", "kind": "mean", "range": [0, 10], "better": "higher", "weight": 0.1}
CASES = {
    "errors, drawn": Case(ERRORS, "harm", 4_000, share=0.2, rate=0.001, harm=20.0),
    "errors, pairs": Case(ERRORS, "harm", 3_500, rate=0.01, harm=3.5),
    "errors, proof": Case(ERRORS | {"promote_margin_abs": 0.01}, "proof", 5_000, share=0.2, rate=0.001),
    "errors, sticky units": Case(ERRORS, "harm", 3_000, share=0.5, rate=0.002, harm=15.0, units=800),
    "invalid scores": Case(ERRORS | {"event": "invalid"}, "harm", 4_000, share=0.2, rate=0.0005, harm=40.0),
    "latency, pause": Case(SLOW, "pause", 2_500, harm=1.2),
    "latency, drawn": Case(SLOW, "pause", 4_000, share=0.2, harm=1.25),
    "latency, blocks": Case(SLOW, "harm", 9_000, share=0.2, per_s=2.0, harm=1.3),
    "latency, proof": Case(SLOW | {"promote_margin_rel": 0.2}, "proof", 2_500, share=0.2),
    "p99, blocks": Case(SLOW | {"q": 0.99}, "harm", 10_000, share=0.2, per_s=2.0, harm=1.8),
    "log loss": Case(LOSS, "harm", 2_500, worse=0.8),
    "log loss, proof": Case(LOSS | {"promote_margin_rel": 0.05}, "proof", 3_500),
    "log loss, proof in each slice": Case(
        LOSS | {"promote_margin_rel": 0.1, "per_slice": True}, "proof", 6_000, slices=4
    ),
    "brier": Case(LOSS | {"loss": "brier"}, "harm", 3_500, worse=0.8),
    "squared": Case(LOSS | {"loss": "squared", "cap": 30}, "harm", 3_000, worse=0.6),
    "squared, proof": Case(LOSS | {"loss": "squared", "cap": 30, "promote_margin_rel": 0.1}, "proof", 4_000),
    "absolute": Case(LOSS | {"loss": "absolute", "cap": 6}, "harm", 3_500, worse=0.5),
    "pinball": Case(LOSS | {"loss": "pinball", "cap": 6, "q": 0.8}, "harm", 1_500, worse=-0.5),
    "rank": Case(LOSS | {"loss": "rank"}, "harm", 7_000, worse=1.1),
    "rank, proof": Case(LOSS | {"loss": "rank", "promote_margin_abs": 0.05}, "proof", 5_000),
    "kpi": Case(KPI, "harm", 4_000, share=0.2, worse=0.75),
    "kpi, proof": Case(KPI | {"promote_margin_rel": 0.1}, "proof", 3_000, share=0.5),
    "kpi, better": Case(KPI | {"promote": "better"}, "proof", 3_000, share=0.5, worse=-0.5),
}


def needed(case: Case) -> tuple[float, float]:
    """Requests as planned, and the median of rollouts played until they say so."""
    name = "shadow" if case.share is None else "canary"
    # A proof is in when the last stage, of one request, may end; harm when the rollout does.
    stage = {"name": name, "share": case.share, "requests": 1 if case.question == "proof" else case.requests}
    body = {"label_maturity_s": 60, "integrity": [], "stages": [stage], "metrics": [case.metric]}
    body["slices"] = ["part"] if case.slices else []
    body["unit"] = "unit" if case.units else "request"
    policy = Policy.parse(body)
    metric = policy.metrics[0]
    base = base_rates(metric, rate=case.rate, worse=case.worse)
    if metric.kind in ("event", "quantile"):
        base = type(base)(rate=base.rate, sigma=base.sigma, effect=case.harm if case.question != "proof" else None)
    if metric.promote == "better":
        base = type(base)(mean=base.mean, sd=base.sd, effect=-(base.effect or 0.0))
    shares = dict.fromkeys("abcd"[: case.slices], 1.0 / max(case.slices, 1))
    rates = Rates(requests_per_hour=case.per_s * 3600.0, units=case.units or None, slices=shares, metrics={"m": base})
    planned = next(need.requests for need in plan(policy, rates).needs if need.question == case.question)
    assert planned is not None
    seen = []
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        made = outcomes(metric, case.requests, rng, rate=case.rate, harm=case.harm, worse=case.worse)
        lines = judge(body, tables(policy, made, rng, per_s=case.per_s, units=case.units))
        said = next((line for line in lines if _says(line, case.question)), None)
        seen.append(case.requests * 10.0 if said is None else said["seq"] + 1.0)
    return float(planned), float(np.median(seen))


def _says(line: dict[str, Any], question: Question) -> bool:
    if question == "pause":
        return bool(line["verdict"] == "continue" and line["metric"])
    return bool(line["verdict"] == {"harm": "rollback", "proof": "promote"}[question])


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_within_a_factor_two_of_the_median(name: str) -> None:
    planned, median = needed(CASES[name])
    assert 0.5 <= planned / median <= 2.0, (planned, median)
