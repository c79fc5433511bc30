"""Claim: the planner is within a factor two of the median of played rollouts, for every kind of metric and question."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from benchmarks.proof.planned_traffic import base_rates, outcomes, tables
from pipelines.rollout.offline import judge
from pipelines.rollout.planner import plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
from pipelines.rollout.walk import Question

FACTOR = 2.0


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


class PlanJob(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout of a case, played until it says what is asked."""

    key: str
    case: str
    seed: int


def jobs(runs: int, seed: int) -> list[PlanJob]:
    """`runs` rollouts of each case."""
    return [PlanJob(key=f"{name}:{n}", case=name, seed=seed + n) for n in range(runs) for name in CASES]


def play(job: PlanJob) -> dict[str, Any]:
    """The requests after which the rollout said what is asked; None: it did not."""
    case, body = CASES[job.case], _policy(CASES[job.case])
    policy, rng = Policy.parse(body), np.random.default_rng(job.seed)
    made = outcomes(policy.metrics[0], case.requests, rng, rate=case.rate, harm=case.harm, worse=case.worse)
    lines = judge(body, tables(policy, made, rng, per_s=case.per_s, units=case.units))
    said = next((line["seq"] + 1 for line in lines if _says(line, case.question)), None)
    return {"key": job.key, "seed": job.seed, "requests": said}


def median(rows: list[dict[str, Any]]) -> float:
    """The median of requests; one that never said it counts as endless."""
    return float(np.median([np.inf if row["requests"] is None else row["requests"] for row in rows]))


@cache
def planned(name: str) -> int:
    """Requests as planned."""
    case = CASES[name]
    policy = Policy.parse(_policy(case))
    metric = policy.metrics[0]
    base = base_rates(metric, rate=case.rate, worse=case.worse)
    if metric.kind in ("event", "quantile"):
        base = type(base)(rate=base.rate, sigma=base.sigma, effect=case.harm if case.question != "proof" else None)
    if metric.promote == "better":
        base = type(base)(mean=base.mean, sd=base.sd, effect=-(base.effect or 0.0))
    shares = dict.fromkeys("abcd"[: case.slices], 1.0 / max(case.slices, 1))
    rates = Rates(requests_per_hour=case.per_s * 3600.0, units=case.units or None, slices=shares, metrics={"m": base})
    found = next(need.requests for need in plan(policy, rates).needs if need.question == case.question)
    assert found is not None  # the cases are such that it can be had
    return found


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The claim in numbers, by case."""
    found: dict[str, Any] = {}
    for name in CASES:
        mine = [row for row in rows if row["key"].rpartition(":")[0] == name]
        if mine:
            middle = median(mine)
            ratio = planned(name) / middle
            found[name] = {
                "runs": len(mine), "planned": planned(name), "median": middle if np.isfinite(middle) else None,
                "ratio": ratio, "holds": 1.0 / FACTOR <= ratio <= FACTOR,
            }  # fmt: skip
    return found


def _policy(case: Case) -> dict[str, Any]:
    """A policy of the one metric and one stage."""
    name = "shadow" if case.share is None else "canary"
    # A proof is in when the last stage, of one request, may end; harm when the rollout does.
    stage = {"name": name, "share": case.share, "requests": 1 if case.question == "proof" else case.requests}
    return {
        "label_maturity_s": 60, "integrity": [], "stages": [stage], "metrics": [case.metric],
        "slices": ["part"] if case.slices else [], "unit": "unit" if case.units else "request",
    }  # fmt: skip


def _says(line: dict[str, Any], question: Question) -> bool:
    if question == "pause":
        return bool(line["verdict"] == "continue" and line["metric"])
    return bool(line["verdict"] == {"harm": "rollback", "proof": "promote"}[question])
