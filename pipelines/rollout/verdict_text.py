"""Verdicts in one sentence: what was compared with what, the numbers, and what is still missing."""

from __future__ import annotations

import math

from pipelines.rollout.bars import proof_bar
from pipelines.rollout.effects import Estimate, Levels
from pipelines.rollout.policy import Metric, Policy
from pipelines.stats.mixture import e_value


def as_share(value: float) -> str:
    """`0.0123` as `1.23 %`."""
    return f"{100 * value:.3g} %"


def as_number(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def versus(metric: Metric | str, levels: Levels) -> str:
    """What was compared with what, in numbers."""
    if isinstance(metric, str) or metric.kind in ("event", "quantile"):
        what = {"quantile": "above the champion's running quantile "}.get(
            "" if isinstance(metric, str) else metric.kind, ""
        )
        return f"{what}challenger {as_share(levels.challenger)} against champion {as_share(levels.champion)}"
    return f"challenger {as_number(levels.challenger)} against champion {as_number(levels.champion)}"


def bar_text(log_e: float, bar: float) -> str:
    """An e-value, given as its natural logarithm, against its bar."""
    return f"e-value {as_number(e_value(log_e))} against the bar {as_number(bar)}"


def sentence_of(metric: Metric, found: Estimate, log_e: float, bar: float) -> str:
    """The verdict on a metric without its proof."""
    if not found.levels.n:
        return f"{metric.name}: no data yet"
    text = f"{metric.name}: {versus(metric, found.levels)} in {found.levels.n} observations"
    if found.estimate is not None:
        text += f", difference {as_number(found.estimate)}"
        if found.lower is not None and found.upper is not None:
            text += f" [{as_number(found.lower)}, {as_number(found.upper)}]"
    if metric.role == "report" or not math.isfinite(bar):
        return text + "; reported, does not act"
    return f"{text}; harm: {bar_text(log_e, bar)}"


def proof_text(
    policy: Policy, metric: Metric, log_proof: float, *, proven: bool, waited: bool, weakest: str | None = None
) -> str:
    """Whether the promotion margin is ruled out; empty for a metric without one. `weakest`: the slice whose proof it
    is, where each slice has to be proven and one of them is behind all traffic.
    """
    if not metric.provable:
        return ""
    where = "" if weakest is None else f" in slice {weakest}"
    return _proof_of(policy, metric, log_proof, proven=proven, waited=waited) + where


def _proof_of(policy: Policy, metric: Metric, log_proof: float, *, proven: bool, waited: bool) -> str:
    if metric.promote == "better":
        found = f"e-value {as_number(e_value(log_proof))}"
        if proven:
            return f"; better ({found})"
        wait = f"waits for {policy.min_event_time_s:g} s of event time"
        return f"; not yet shown to be better ({f'{found} of {as_number(proof_bar(policy))}' if waited else wait})"
    margin = (
        f"{as_share(metric.promote_margin_rel)} worse"
        if metric.promote_margin_rel
        else f"{metric.promote_margin_abs} worse"
    )
    if proven:
        return f"; ruled out: {margin} (e-value {as_number(e_value(log_proof))})"
    if not waited:
        return f"; not yet ruled out: {margin} (waits for {policy.min_event_time_s:g} s of event time)"
    return f"; not yet ruled out: {margin} (e-value {as_number(e_value(log_proof))} of {as_number(proof_bar(policy))})"
