"""Policies: parsed strictly, completed with defaults, named by their digest."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from pipelines.contracts.errors import ContractError
from pipelines.rollout.bars import levels, live_stages, restart_weights
from pipelines.rollout.policy import Policy
from tests.unit.stats.cases import mapping


def test_a_policy_round_trips_with_its_defaults_written_out() -> None:
    policy = Policy.parse(mapping())
    assert Policy.parse(policy.to_mapping()) == policy
    assert Policy.parse(policy.to_mapping()).digest == policy.digest


def test_every_margin_changes_the_digest() -> None:
    changed = copy.deepcopy(mapping())
    changed["metrics"][0]["promote_margin_abs"] = 0.011
    assert Policy.parse(changed).digest != Policy.parse(mapping()).digest


def test_kinds_of_stages_follow_their_names_and_shares() -> None:
    stages = [
        {"name": "backtest", "requests": 10},
        {"name": "shadow", "requests": 10},
        {"name": "canary_05", "share": 0.05},
        {"name": "half", "share": 0.5, "kind": "ab"},
        {"name": "bake"},
    ]
    primary = {"name": "logloss", "kind": "paired_loss"}
    policy = Policy.parse(mapping() | {"stages": stages, "metrics": [primary]})
    assert [stage.kind for stage in policy.stages] == ["backtest", "shadow", "canary", "ab", "bake"]
    assert [stage.randomised for stage in policy.stages] == [False, False, True, True, False]
    assert [stage.pairs for stage in policy.stages] == [True, True, True, False, False]


WEIGHED = [
    {"name": "backtest", "requests": 10, "weight": 0.1},
    {"name": "shadow", "requests": 10},
    {"name": "canary_05", "share": 0.05},
    {"name": "bake", "weight": 0.1},
]


def test_stages_share_the_budget_by_their_weights_and_no_metric_spends_more_than_its_own() -> None:
    policy = Policy.parse(mapping() | {"stages": WEIGHED})
    assert [stage.weight for stage in policy.stages] == [0.1, pytest.approx(0.4), pytest.approx(0.4), 0.1]
    assert Policy.parse(policy.to_mapping()) == policy
    found = levels(policy)
    assert [*found] == ["from the start", "backtest", "shadow", "canary_05", "bake"]
    assert sum(found.values()) == pytest.approx(policy.budget.rollback)
    assert found["backtest"] == pytest.approx(0.05 * policy.budget.rollback)
    for metric in policy.metrics:
        weights = restart_weights(policy, live_stages(policy, metric))
        assert weights is not None
        assert weights.sum() == pytest.approx(1.0)


def test_a_policy_without_weights_of_stages_is_as_it_was() -> None:
    plain = mapping() | {"stages": [{k: v for k, v in stage.items() if k != "weight"} for stage in WEIGHED]}
    policy = Policy.parse(plain)
    assert not any("weight" in stage for stage in policy.to_mapping()["stages"])
    assert restart_weights(policy, live_stages(policy, policy.metrics[0])) is None
    assert "bake" not in live_stages(policy, policy.metric("logloss"))
    assert sum(levels(policy).values()) == pytest.approx(policy.budget.rollback)


@pytest.mark.parametrize("weights", [(0.6, 0.5), (0.5, 0.5)])
def test_weights_of_stages_leave_something_to_the_others(weights: tuple[float, float]) -> None:
    stages = [WEIGHED[0] | {"weight": weights[0]}, *WEIGHED[1:3], WEIGHED[3] | {"weight": weights[1]}]
    with pytest.raises(ContractError, match="weights of the stages"):
        Policy.parse(mapping() | {"stages": stages})


AB = [{"name": "shadow", "requests": 100}, {"name": "ab_50", "share": 0.5, "requests": 100, "min_event_time_s": 60}]


def test_where_the_traffic_is_split_a_primary_metric_must_be_better_and_others_not_worse() -> None:
    kpi = {"name": "kpi", "kind": "mean", "range": [0, 10], "role": "primary"}
    guardrail = {"name": "error_rate", "kind": "event", "promote_margin_abs": 0.01}
    policy = Policy.parse(mapping() | {"stages": AB, "metrics": [kpi, guardrail]})
    assert [(metric.promote, metric.promote_margin_abs) for metric in policy.metrics] == [
        ("better", 0.0),
        ("not_worse", 0.01),
    ]
    assert policy.require == ("kpi", "error_rate")
    assert Policy.parse(policy.to_mapping()) == policy


def test_metrics_without_weight_share_what_is_left() -> None:
    body = mapping()
    body["metrics"] = [{**row, "weight": None} if row["name"] != "logloss" else row for row in body["metrics"]]
    policy = Policy.parse(body)
    assert sum(metric.weight for metric in policy.metrics) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_request": 3}, "Did you mean 'warmup_requests'"),
        ({"budget": {"rolback": 0.1}}, "Did you mean 'rollback'"),
        ({"budget": {"rollback": 0.0}}, r"budget.rollback"),
        ({"stages": []}, "stages of the policy"),
        ({"stages": [{"name": "canary_05", "share": 1.5}]}, r"share of stage canary_05"),
        ({"stages": [{"name": "canary_05"}]}, "strictly between 0 and 1"),
        ({"stages": [{"name": "shadow", "requests": 0}]}, "at least 1"),
        ({"metrics": [{"name": "e", "kind": "events"}]}, "Did you mean 'event'"),
        ({"metrics": [{"name": "e", "kind": "event", "harm_ration": 2}]}, "Did you mean 'harm_ratio'"),
        ({"metrics": [{"name": "k", "kind": "mean"}]}, "range of metric k"),
        ({"metrics": [{"name": "l", "kind": "paired_loss", "loss": "squared"}]}, "cap of metric l"),
        ({"metrics": [{"name": "l", "kind": "paired_loss", "loss": "pinball", "cap": 9}]}, "q of metric l"),
        ({"metrics": [{"name": "l", "kind": "paired_loss", "loss": "pinbal"}]}, "pinball"),
        ({"metrics": [{"name": "e", "kind": "event", "promote_margin_rel": 1}]}, "absolute margin"),
        ({"metrics": [{"name": n, "kind": "event", "weight": 0.6} for n in "ef"]}, "at most 1"),
        ({"metrics": [{"name": "e", "kind": "event"}, {"name": "e", "kind": "event"}]}, "e twice"),
        ({"stages": [{"name": "shadow", "requests": "auto"}]}, "settled when a rollout starts"),
        ({"stages": AB}, "promote: not_worse"),
        ({"stages": AB, "metrics": [{"name": "e", "kind": "event"}]}, "none that has to be better"),
        ({"metrics": [{"name": "e", "kind": "event", "promote": "better"}]}, "only a mean or a paired_loss"),
        ({"metrics": [{"name": "e", "kind": "event", "promote": "beter"}]}, "Did you mean 'better'"),
        ({"metrics": [{"name": "e", "kind": "event", "per_slice": True}]}, "a promote_margin to prove"),
        ({"require": ["loglos"]}, "Did you mean 'logloss'"),
        ({"require": "logloss"}, "expected a list"),
        ({"slices": ["slice", "slice"]}, "different names"),
        ({"metrics": [{"name": "e", "kind": "event", "harm_abs": 0.1}]}, "harm_abs of metric e"),
        ({"metrics": [{"name": "p", "kind": "quantile", "q": 0.5, "promote_margin_abs": 9}]}, "promote_margin_abs"),
        ({"metrics": [{"name": "sample_ratio", "kind": "event"}]}, "none of sample_ratio"),
        ({"response_deadline_s": 1e300}, "response_deadline_s"),
        ({"integrity": ["sample_ration"]}, "Did you mean 'sample_ratio'"),
        ({"schema": "slipway-gate/2"}, "slipway-gate/1"),
        ({"label_maturity_s": float("nan")}, "label_maturity_s"),
    ],
)  # fmt: skip
def test_a_broken_policy_names_what_was_got_and_what_was_meant(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        Policy.parse(mapping() | change)


def test_asking_for_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(ContractError, match="Did you mean 'canary_20'"):
        Policy.parse(mapping()).stage("canary_2")
