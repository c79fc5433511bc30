"""The e-values that rollback, hold and promotion ask for, and the stages whose evidence counts towards them."""

from __future__ import annotations

import math

from pipelines.rollout.policy import Metric, Policy


def live_stages(policy: Policy, metric: Metric | str) -> tuple[str, ...]:
    """The stages in which a metric (or an integrity check) gathers evidence."""
    drawn = tuple(stage.name for stage in policy.stages if stage.randomised)
    if isinstance(metric, str):
        return drawn if metric == "sample_ratio" else _compared(policy)
    return drawn if metric.kind == "mean" else _compared(policy, pairs=metric.paired)


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
