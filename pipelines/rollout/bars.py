"""The e-values that rollback, hold and promotion ask for, and the stages whose evidence counts towards them."""

from __future__ import annotations

import math

import numpy as np

from pipelines.rollout.policy import Metric, Policy
from pipelines.stats.nats import Floats


def live_stages(policy: Policy, metric: Metric | str) -> tuple[str, ...]:
    """The stages in which a metric (or an integrity check) gathers evidence."""
    drawn = tuple(stage.name for stage in policy.stages if stage.randomised)
    if isinstance(metric, str):
        return drawn if metric == "sample_ratio" else _compared(policy)
    if metric.kind == "mean":
        return drawn
    baked = tuple(stage.name for stage in policy.stages if stage.rejudges and metric.kind == "paired_loss")
    return _compared(policy, pairs=metric.paired) + baked


def restart_weights(policy: Policy, stages: tuple[str, ...]) -> Floats | None:
    """What each of the `stages` in which a metric lives has of the half of its e-value that begins anew with a stage;
    sums to one. None: all alike.
    """
    weights = np.array([policy.stage(name).weight or 0.0 for name in stages])
    return weights / weights.sum() if weights.any() else None


def levels(policy: Policy) -> dict[str, float]:
    """The rollback budget by what it is spent on: harm `from the start`, and harm that begins in each of the stages.

    The e-value of a metric is half `prod_k M_k` and half `sum_k w_k M_k`: harm in stage k alone is found when M_k
    passes `1 / (level_k * weight of the metric)`. Levels add up to `budget.rollback` for a metric that lives in all.
    """
    stages = tuple(stage.name for stage in policy.stages if stage.compares or stage.rejudges)
    weights = restart_weights(policy, stages)
    each = np.full(len(stages), 1.0 / max(len(stages), 1)) if weights is None else weights
    half = 0.5 * policy.budget.rollback
    return {"from the start": half} | dict(zip(stages, (half * each).tolist(), strict=True))


def _compared(policy: Policy, *, pairs: bool = False) -> tuple[str, ...]:
    """The stages in which both arms answer; with `pairs` those in which both score the same requests."""
    return tuple(stage.name for stage in policy.stages if (stage.pairs if pairs else stage.compares))


def proof_stages(policy: Policy, metric: Metric) -> tuple[str, ...]:
    """The stages whose evidence may prove a metric: answers that were served, where there are any; pairs everywhere."""
    drawn = tuple(stage.name for stage in policy.stages if stage.randomised)
    if metric.kind in ("mean", "quantile") or (metric.kind == "event" and drawn):
        return drawn
    return _compared(policy, pairs=metric.paired)


def rollback_bar(policy: Policy, metric: Metric) -> float:
    """The e-value a family needs for rollback: 1 / (weight * budget). Infinite for a metric without weight."""
    return 1.0 / (metric.weight * policy.budget.rollback) if metric.weight > 0.0 else math.inf


def hold_bar(policy: Policy) -> float:
    """The e-value an integrity check needs for hold."""
    return max(len(policy.integrity), 1) / policy.budget.hold


def proof_bar(policy: Policy) -> float:
    """The e-value a proof needs. Every required proof must be in, so each may use the whole level."""
    return 1.0 / policy.budget.promote
