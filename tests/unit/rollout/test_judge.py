"""The judge: what evidence leads to which word, and that equal evidence leads to equal words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipelines.collect.fold import Fold
from pipelines.rollout.judge import judge
from pipelines.rollout.judgement import Judgement, Verdict
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import HEALTHY, Fault, simulate
from pipelines.rollout.traffic import Traffic
from pipelines.stats.evidence import Evidence
from tests.unit.stats.cases import METRICS, between, mapping, policy, stamps

TRAFFIC = Traffic(requests_per_s=0.2)


def judged(
    fault: Fault = HEALTHY, *, seed: int = 1, chosen: Policy | None = None, stage: str = "canary_50"
) -> Judgement:
    chosen = chosen or policy(2500, 2500)
    fold = Fold(chosen)
    fold.add(**simulate(chosen, seed=seed, traffic=TRAFFIC, fault=fault))
    return judge(chosen, fold.evidence(), stage)


def verdict(found: Judgement, metric: str) -> Verdict:
    return next(one for one in found.verdicts if one.metric == metric)


def test_no_evidence_is_no_data_and_no_decision() -> None:
    found = judge(policy(), Evidence(), "shadow")
    assert {one.kind for one in found.verdicts} == {"no_data"}
    assert found.stop is None
    assert not found.stage_complete
    assert found.missing == policy().require


def test_a_healthy_challenger_is_proven_and_not_stopped() -> None:
    found = judged()
    assert found.stop is None
    assert found.missing == ()
    assert found.stage_complete
    assert verdict(found, "logloss").kind == "pass"


@pytest.mark.parametrize(
    ("fault", "action", "metric"),
    [
        (Fault(error_rate=0.03, only_served=True), "rollback", "error_rate"),
        (Fault(error_rate=0.03), "rollback", "error_rate"),
        (Fault(invalid_rate=0.03, only_served=True), "rollback", "invalid_score"),
        (Fault(logit_noise=1.5), "rollback", "logloss"),
        (Fault(kpi_factor=0.7), "rollback", "kpi"),
        (Fault(share_factor=1.4), "hold", "sample_ratio"),
        (Fault(lost=0.03), "hold", "lost_responses"),
        (Fault(doubled=0.03), "hold", "duplicates"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_stopped_by_its_own_metric(fault: Fault, action: str, metric: str) -> None:
    found = judged(fault)
    assert found.stop is not None
    assert (found.stop.action, found.stop.metric) == (action, metric)
    assert found.stop.e_value >= found.stop.threshold
    assert verdict(found, metric).kind == "fail"
    assert f"{found.stop.threshold:.4g}" in found.stop.sentence


def test_integrity_outranks_harm() -> None:
    found = judged(Fault(error_rate=0.1, lost=0.05))
    assert found.stop is not None
    assert found.stop.action == "hold"


def test_a_fault_in_one_slice_names_the_slice() -> None:
    found = judged(Fault(error_rate=0.2, slice="c", only_served=True))
    assert found.stop is not None
    assert (found.stop.metric, found.stop.slice) == ("error_rate", "c")


def test_slow_requests_pause_the_ramp_and_do_not_roll_back_alone() -> None:
    chosen = policy(2500, 2500)
    fold = Fold(chosen)
    fold.add(**simulate(chosen, seed=1, traffic=Traffic(requests_per_s=200.0), fault=Fault(latency_factor=1.6)))
    found = judge(chosen, fold.evidence(), "canary_50")
    assert found.stop is None
    assert found.pause is not None
    assert found.pause.metric == "latency_p50"


def test_lasting_slowness_rolls_back_by_blocks() -> None:
    chosen = policy(1000, 6000)
    fold = Fold(chosen)
    fold.add(**simulate(chosen, seed=1, traffic=Traffic(requests_per_s=0.5), fault=Fault(latency_factor=1.6)))
    found = judge(chosen, fold.evidence(), "canary_50")
    assert found.stop is not None
    assert found.stop.metric == "latency_p50"
    assert "blocks" in found.stop.sentence
    (failed,) = [verdict for verdict in found.verdicts if verdict.kind == "fail"]
    assert f"by blocks of 60 seconds: {found.stop.sentence.rpartition('; ')[2]}" in failed.sentence


def test_a_better_challenger_is_called_better_and_an_equal_one_is_not() -> None:
    """The same model twice: scores are equal to the bit, and nothing is claimed of it."""
    chosen = policy(2500, 2500)
    tables = simulate(chosen, seed=2, traffic=TRAFFIC)
    responses = tables["responses"].to_pandas()
    champion = responses[responses.arm == "champion"].set_index("request_id")["score"]
    responses.loc[responses.arm == "challenger", "score"] = (
        responses.loc[responses.arm == "challenger", "request_id"].map(champion).fillna(0.3)
    )
    import pyarrow as pa

    fold = Fold(chosen)
    fold.add(**(tables | {"responses": pa.Table.from_pandas(responses, preserve_index=False)}))
    same = judge(chosen, fold.evidence(), "canary_50")
    assert verdict(same, "logloss").better == "unproven"
    assert verdict(same, "logloss").estimate == 0.0

    noisy = judged(Fault(logit_noise=-0.0), seed=3)
    assert verdict(noisy, "logloss").better == "unproven"
    worse = judged(Fault(logit_noise=1.5))
    assert verdict(worse, "logloss").better == "no"


@pytest.mark.parametrize(
    "loss",
    [
        {"loss": "brier"},
        {"loss": "squared", "cap": 1.0},
        {"loss": "absolute", "cap": 1.0},
        {"loss": "pinball", "cap": 1.0, "q": 0.5},
    ],
    ids=lambda loss: str(loss["loss"]),
)
def test_every_loss_stops_noise_and_lets_an_honest_challenger_pass(loss: dict[str, Any]) -> None:
    metrics = [{**row, **loss} if row["name"] == "logloss" else row for row in mapping()["metrics"]]
    chosen = policy(2500, 2500, metrics=metrics)
    noisy = judged(Fault(logit_noise=2.5), chosen=chosen)
    assert noisy.stop is not None
    assert noisy.stop.metric == "logloss"
    honest = judged(chosen=chosen)
    assert honest.stop is None
    assert verdict(honest, "logloss").kind in ("pass", "inconclusive")


def test_the_rank_loss_finds_scores_that_order_worse() -> None:
    metrics = [{**row, "loss": "rank"} if row["name"] == "logloss" else row for row in mapping()["metrics"]]
    chosen = policy(30_000, 500, metrics=metrics)
    noisy = judged(Fault(logit_noise=2.5), chosen=chosen)
    assert noisy.stop is not None
    assert noisy.stop.metric == "logloss"
    assert verdict(judged(chosen=chosen, seed=4), "logloss").kind == "pass"


def test_pairs_wait_for_the_minimum_event_time_unless_the_harm_is_hard() -> None:
    week = 7 * 86400.0
    waiting = policy(2500, 2500, min_event_time_s=week)
    assert judged(Fault(logit_noise=1.0), chosen=waiting).stop is None
    assert "logloss" in judged(chosen=waiting).missing
    hard = mapping(2500, 2500, min_event_time_s=week)
    hard["metrics"] = [row | {"hard_harm_rel": 0.05} if row["name"] == "logloss" else row for row in METRICS]
    stop = judged(Fault(logit_noise=2.0), chosen=Policy.parse(hard)).stop
    assert stop is not None
    assert stop.metric == "logloss"


def test_a_metric_for_the_report_never_acts() -> None:
    body = mapping(2500, 2500)
    body["metrics"] = [row | {"role": "report"} if row["name"] == "logloss" else row for row in METRICS]
    found = judged(Fault(logit_noise=1.5), chosen=Policy.parse(body))
    assert found.stop is None
    assert "does not act" in verdict(found, "logloss").sentence


def test_score_disagreement_acts_only_when_the_policy_says_so() -> None:
    assert judged(Fault(logit_shift=0.0)).stop is None
    body = mapping(2500, 2500)
    body["metrics"] = [row | {"role": "guardrail"} if row["name"] == "score_disagreement" else row for row in METRICS]
    stop = judged(Fault(logit_shift=0.0), chosen=Policy.parse(body)).stop
    assert stop is not None
    assert stop.metric == "score_disagreement"


def test_the_judge_is_a_function_of_policy_and_evidence() -> None:
    first, second = judged(seed=9), judged(seed=9)
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_a_stage_is_complete_at_its_number_of_requests_or_at_the_final_look() -> None:
    chosen = policy(500, 500)
    tables = simulate(chosen, seed=1, traffic=TRAFFIC)
    half = int(stamps(tables["assignments"])[250])
    fold = Fold(chosen)
    fold.add(**between(tables, 0, half))
    assert not judge(chosen, fold.evidence(), "shadow").stage_complete
    assert judge(chosen, fold.evidence(), "shadow", final_look=True).stage_complete


def test_missing_sequence_numbers_hold_the_rollout() -> None:
    chosen = policy(2000, 500)
    tables = simulate(chosen, seed=1, traffic=TRAFFIC)
    kept = tables["assignments"].filter([n % 40 != 0 for n in range(tables["assignments"].num_rows)])
    fold = Fold(chosen)
    fold.add(**(tables | {"assignments": kept}))
    stop = judge(chosen, fold.evidence(), "canary_50").stop
    assert stop is not None
    assert (stop.action, stop.metric) == ("hold", "lost_assignments")


def test_one_bad_stage_is_no_harm_of_pairs_while_the_whole_way_shows_none() -> None:
    stages = [{"name": "backtest", "requests": 5000}, {"name": "shadow", "requests": 1200}]

    def stopped(minimum_s: float) -> bool:
        body = mapping(stages=stages, min_event_time_s=minimum_s)
        body["metrics"] = [row | {"harm_rel": 0.15} if row["name"] == "logloss" else row for row in METRICS]
        stop = judged(Fault(logit_noise=2.0, begins=5000), chosen=Policy.parse(body), stage="shadow").stop
        return stop is not None and stop.metric == "logloss"

    assert stopped(0.0)
    assert not stopped(1.0)
