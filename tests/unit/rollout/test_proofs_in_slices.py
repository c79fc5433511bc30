"""Proofs for promotion in every slice, proofs with sticky units, and stages that last a minimum."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.collect.fold import Fold
from pipelines.rollout.judge import judge as judge_evidence
from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, Fault, simulate
from pipelines.rollout.traffic import Traffic

ERRORS = {"name": "error_rate", "kind": "event", "harm_ratio": 50, "promote_margin_abs": 0.03, "weight": 0.5}
HURT = Fault(error_rate=0.08, slice="b", only_served=True)
"""Over all traffic 2 % more errors: within the margin. In the slice 8 %: not."""


def body(**metric: Any) -> dict[str, Any]:
    stages = [{"name": "canary_50", "share": 0.5, "requests": 6000}]
    return {"stages": stages, "slices": ["slice"], "metrics": [ERRORS | metric], "integrity": []}


def last(chosen: dict[str, Any], fault: Fault = HEALTHY, **traffic: Any) -> dict[str, Any]:
    return judge(chosen, simulate(Policy.parse(chosen), seed=3, fault=fault, traffic=Traffic(**traffic)))[-1]


def test_harm_in_one_slice_passes_a_margin_over_all_traffic() -> None:
    assert last(body(), HURT)["verdict"] == "promote"


def test_harm_in_one_slice_keeps_the_proof_of_each_slice_out() -> None:
    found = last(body(per_slice=True), HURT)
    assert (found["verdict"], found["missing"]) == ("inconclusive", ["error_rate"])


def test_a_healthy_challenger_is_proven_in_each_slice() -> None:
    assert last(body(per_slice=True))["verdict"] == "promote"


def test_the_sentence_names_the_slice_that_is_not_proven() -> None:
    policy = Policy.parse(body(per_slice=True))
    fold = Fold(policy)
    fold.add(**simulate(policy, seed=3, fault=HURT))
    verdict = next(v for v in judge_evidence(policy, fold.evidence(), "canary_50").verdicts if v.metric == "error_rate")
    assert verdict.kind == "inconclusive"
    assert verdict.sentence.endswith("in slice b")


@pytest.mark.parametrize("unit", ["request", "unit"])
def test_latency_is_proven_whether_requests_or_units_are_drawn(unit: str) -> None:
    slow = {"name": "latency", "kind": "quantile", "q": 0.5, "promote_margin_rel": 0.2, "weight": 0.5}
    chosen = body() | {"metrics": [slow], "unit": unit}
    assert last(chosen, units=100_000)["verdict"] == "promote"


def test_promotion_waits_until_the_last_stage_has_lasted_its_minimum() -> None:
    chosen = body()
    soon = judge(chosen, simulate(Policy.parse(chosen), seed=3))[-1]
    chosen["stages"] = [chosen["stages"][0] | {"min_event_time_s": 10 * 86_400.0}]
    late = judge(chosen, simulate(Policy.parse(chosen), seed=3))[-1]
    assert (soon["verdict"], late["verdict"]) == ("promote", "inconclusive")
