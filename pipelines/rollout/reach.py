"""What a policy asks for and cannot get at the model's traffic, and what would do, in sentences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from pipelines.rollout import growth
from pipelines.rollout.bars import proof_stages
from pipelines.rollout.planner import Need, need_of
from pipelines.rollout.policy import Metric, Policy, Stage
from pipelines.rollout.rates import MissingRateError, Rates
from pipelines.rollout.walk import Walk, lasts

_MOST = 1e9
_WIDEST = 50.0
_SERVED = "served answers: add a canary or ab stage"


class Shortfall(NamedTuple):
    """A metric or a stage, and what is out of reach."""

    metric: str | None
    stage: str | None
    sentence: str


def unprovable(policy: Policy) -> list[Shortfall]:
    """Required proofs for which the policy has no stage, whatever the traffic."""
    found = []
    for metric in (policy.metric(name) for name in policy.require):
        if proof_stages(policy, metric):
            continue
        asks = "pairs: add a backtest, shadow or canary stage" if metric.paired else _SERVED
        text = f"{metric.name} {margin_text(metric)} is proven on {asks}, or leave it out of require"
        found.append(Shortfall(metric.name, None, text))
    return found


def shortfalls(policy: Policy, rates: Rates) -> list[Shortfall]:
    """Required proofs that do not fit into the stages, and stages that outlast their time limit. A metric of which too
    little is known is left out.
    """
    found = unprovable(policy)
    found += [Shortfall(None, stage.name, text) for stage in policy.stages if (text := _too_long(stage, rates))]
    for metric in policy.metrics:
        if metric.name in policy.require and proof_stages(policy, metric):
            try:
                asked = Walk.of(policy, rates, metric, "proof")
            except MissingRateError:
                continue
            if not asked.fits():
                found.append(Shortfall(metric.name, None, _does_not_fit(asked, need_of(asked))))
    return found


def _too_long(stage: Stage, rates: Rates) -> str:
    size = lasts(stage, rates)
    if stage.max_wait_s is None or stage.kind == "backtest" or not math.isfinite(size):
        return ""
    takes_s = size / rates.requests_per_hour * 3600.0
    if takes_s <= stage.max_wait_s:
        return ""
    per_day = rates.requests_per_hour * 24.0
    fit = math.floor(stage.max_wait_s / 3600.0 * rates.requests_per_hour)
    return (
        f"stage {stage.name}: {size:,.0f} requests take {days(takes_s)} at {per_day:,.0f}/day; max_wait is "
        f"{days(stage.max_wait_s)}. Set max_wait to {days(math.ceil(takes_s / 8640) * 8640)} or requests to {fit:,}"
    )


def _does_not_fit(asked: Walk, need: Need) -> str:
    metric, rates = asked.metric, asked.rates
    margin = margin_text(metric)
    if need.requests is None or need.hours is None:
        return f"{metric.name} {margin} cannot be proven in these stages, at any length: {_remedies(asked, None)}"
    usable = growth.informative(metric, rates.of(metric.name), rates.labelled)
    per_day = rates.requests_per_hour * 24.0 * usable
    what = {"paired_loss": "labelled pairs", "mean": "requests with a value"}.get(metric.kind, "requests")
    stage = _to_lengthen(asked)
    has = lasts(stage, rates) / rates.requests_per_hour * 3600.0
    return (
        f"{metric.name} {margin} needs {need.observations or 0:,} {what}: {days(need.hours * 3600.0)} at "
        f"{per_day:,.0f}/day; stage {stage.name} is {days(has)}. {_remedies(asked, stage)}"
    )


def _to_lengthen(asked: Walk) -> Stage:
    """The stage of which more would help: the one of pairs without exposure, else the last that counts."""
    stages = [asked.policy.stages[k] for k in asked.counted]
    shadows = [stage for stage in stages if stage.kind == "shadow"]
    return shadows[-1] if asked.metric.paired and shadows else stages[-1]


def _remedies(asked: Walk, stage: Stage | None) -> str:
    """What would do, smallest change first."""
    told = []
    if stage is not None and (size := _smallest(lambda n: _longer(asked, stage, n).fits(), lasts(stage, asked.rates))):
        size = math.ceil(size / 100.0) * 100.0
        told.append(f"lengthen it to {size:,.0f} requests ({days(size / asked.rates.requests_per_hour * 3600.0)})")
    if asked.metric.promote != "better" and (factor := _widened(asked)):
        told.append(f"widen the margin to {margin_text(_wider(asked.metric, factor)).removeprefix('+')}")
    if stage is not None and told:
        told.append("set `requests: auto`")
    told = told or ["leave it out of `require`"]
    text = told[0] if len(told) == 1 else f"{', '.join(told[:-1])}, or {told[-1]}"
    return text[0].upper() + text[1:]


def _longer(asked: Walk, stage: Stage, requests: float) -> Walk:
    stages = tuple(
        msgspec.structs.replace(each, requests=math.ceil(requests)) if each.name == stage.name else each
        for each in asked.policy.stages
    )
    policy = msgspec.structs.replace(asked.policy, stages=stages)
    return Walk.of(policy, asked.rates, asked.metric, "proof")


def _wider(metric: Metric, factor: float) -> Metric:
    margins = {
        key: float(f"{value * factor:.2g}")
        for key in ("promote_margin_rel", "promote_margin_abs")
        if (value := getattr(metric, key)) is not None
    }
    return msgspec.structs.replace(metric, **margins)


def _widened(asked: Walk) -> float | None:
    """The factor on the margin with which the proof fits."""

    def fits(factor: float) -> bool:
        return Walk.of(asked.policy, asked.rates, _wider(asked.metric, factor), "proof").fits()

    return _smallest(fits, 1.0, most=_WIDEST)


def _smallest(holds: Callable[[float], bool], low: float, most: float = _MOST) -> float | None:
    """The least number above `low` for which it holds, to one percent; None when it does not hold at `most`."""
    high = max(low, 1e-9) * 2.0
    while not holds(high):
        low, high = high, high * 2.0
        if high > most:
            return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def margin_text(metric: Metric) -> str:
    """What must be proven: `+0.5 %`, `+0.003`, or `better`."""
    if metric.promote == "better":
        return "better"
    if metric.promote_margin_rel is not None:
        return f"+{100 * metric.promote_margin_rel:.3g} %"
    return f"+{metric.promote_margin_abs:.3g}"


def days(seconds: float) -> str:
    """`9 days`, `5 hours`, `2.5 days`."""
    if seconds < 1.5 * 86_400:
        return f"{seconds / 3600:.3g} hours"
    return f"{seconds / 86_400:.2g} days" if seconds < 100 * 86_400 else f"{seconds / 86_400:,.0f} days"
