"""How much traffic each question of a policy needs, before the rollout starts.

Three questions a metric: `harm` (how soon is harm of the declared size stopped), `pause` (for latency: how soon does
the ramp wait) and `proof` (how soon is the promotion margin ruled out when the challenger is as good as the champion).
The expected log factors of all bets are added up stage by stage and mixed as the judge mixes them; the answer is where
the e-value passes its bar.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from pipelines.contracts.errors import ContractError
from pipelines.rollout import growth
from pipelines.rollout.bars import levels
from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.rates import BaseRates, MissingRateError, Rates
from pipelines.rollout.walk import ENDLESS, Question, Walk, harm_effect, smallest_harm


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What one question needs. None: never, at any length. `stage` is where it is answered; `feasible`: within the
    policy. `observations` are those that tell something (labelled requests, pairs); `requests` and `hours` go on until
    the answer is in, labels matured. `found_from`: the smallest harm that these stages find.
    """

    metric: str
    question: Question
    effect: float
    stage: str | None
    challenger_requests: int | None
    requests: int | None
    hours: float | None
    feasible: bool
    sentence: str
    observations: int | None = None
    found_from: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All needs of a policy; `feasible` when every required proof fits into the stages. `requests` and `hours`: the
    live stages before the challenger is champion. `levels`: the rollback budget by what it is spent on (`bars.levels`).
    `unknown`: metrics that are not planned, with the base rate that each lacks; none whose proof is required.
    """

    policy_digest: str
    requests: int | None
    hours: float | None
    feasible: bool
    levels: dict[str, float]
    needs: tuple[Need, ...]
    unknown: dict[str, str] = {}

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values; `metrics` holds the harm question by metric, the form of `slipway-gate/1`."""
        body: dict[str, Any] = msgspec.to_builtins(self)
        body["metrics"] = {
            need.metric: {
                "challenger_requests": need.challenger_requests,
                "requests": need.requests,
                "hours": need.hours,
                "feasible": need.feasible,
            }
            for need in self.needs
            if need.question == "harm"
        }
        return body


def plan(policy: Policy, rates: Rates) -> Plan:
    """The plan of `policy` at the given traffic. Raises ContractError for a base rate of no metric or outside the
    metric's range, and naming the one that a metric lacks whose proof is required.
    """
    for name, base in rates.metrics.items():
        _check_range(policy.metric(name), base)
    needs: list[Need] = []
    unknown: dict[str, str] = {}
    for metric in policy.metrics:
        try:
            needs += metric_needs(policy, rates, metric)
        except MissingRateError as error:
            if metric.name in policy.require:
                raise
            unknown[metric.name] = str(error.expected)
    sizes = [stage.requests for stage in policy.stages if stage.kind not in ("backtest", "bake")]
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    return Plan(
        policy_digest=policy.digest,
        requests=total,
        hours=None if total is None else round(total / rates.requests_per_hour, 3),
        feasible=all(need.feasible for need in needs if need.question == "proof"),
        levels=levels(policy),
        needs=tuple(needs),
        unknown=unknown,
    )


def _check_range(metric: Metric, base: BaseRates) -> None:
    if metric.range is not None and base.mean is not None and not metric.range[0] <= base.mean <= metric.range[1]:
        low, high = metric.range
        raise ContractError(
            f"base rates: metrics.{metric.name}.mean",
            got=f"{base.mean:g}",
            expected=f"a mean in the metric's range [{low:g}, {high:g}]",
        )


def metric_needs(policy: Policy, rates: Rates, metric: Metric) -> list[Need]:
    """The needs of one metric; none of one that is only reported. Raises as `plan`."""
    if metric.role == "report":
        return []
    needs = []
    if metric.weight > 0.0:
        effect = harm_effect(metric, rates.of(metric.name))
        needs.append(need_of(Walk.of(policy, rates, metric, "harm", effect)))
        if metric.kind == "quantile":
            needs.append(need_of(Walk.of(policy, rates, metric, "pause", effect)))
    if metric.name in policy.require:
        needs.append(need_of(Walk.of(policy, rates, metric, "proof")))
    return needs


def need_of(asked: Walk) -> Need:
    """The answer to a question, in requests, exposed requests and hours."""
    found, smallest = asked.reached(), smallest_harm(asked) if asked.question != "proof" else None
    metric, instead = asked.metric, "" if smallest is None else f", which find {smallest:.3g} and more"
    if found is None:
        text = f"{_words(asked)} cannot be had in these stages, at any length"
        if asked.question == "harm" and metric.kind == "quantile":
            text += ": it is stopped by blocks of 60 seconds with answers of both arms, and traffic is sparse"
        return Need(
            metric=metric.name, question=asked.question, effect=asked.effect, stage=None, challenger_requests=None,
            requests=None, hours=None, feasible=False, sentence=text + instead, found_from=smallest,
        )  # fmt: skip
    last = asked.counted[max((place for place, n in enumerate(found) if n > 0.0), default=0)]
    spent = [min(size, ENDLESS) if k < last else 0.0 for k, size in enumerate(asked.sizes)]
    spent[last] = found[asked.counted.index(last)]
    stages, fits = asked.policy.stages, asked.fits()
    replayed = sum(n for n, each in zip(spent, stages, strict=True) if each.kind == "backtest")
    live = sum(spent) - replayed
    walked = max(live + asked.late(), asked.least_time(replayed)) if live > 0.0 else 0.0
    exposed, hours = asked.exposed(walked), walked / asked.rates.requests_per_hour
    usable = growth.informative(metric, asked.rates.of(metric.name), asked.rates.labelled)
    text = f"{_words(asked)} needs {math.ceil(walked):,} requests ({math.ceil(exposed):,} exposed), {hours:.1f} h"
    if fits:
        text += f"; answered in {stages[last].name}"
    elif asked.question == "proof":
        text += f"; {stages[last].name} ends before: prolong it or widen the margin"
    else:
        text += "; more than the stages have" + instead
    return Need(
        metric=metric.name, question=asked.question, effect=asked.effect, stage=stages[last].name,
        challenger_requests=math.ceil(exposed), requests=math.ceil(walked), hours=round(hours, 3), feasible=fits,
        sentence=text, observations=math.ceil(usable * sum(spent[k] for k in asked.counted)), found_from=smallest,
    )  # fmt: skip


def _words(asked: Walk) -> str:
    if asked.question == "proof":
        return f"{asked.metric.name}: the proof for promotion"
    return f"{asked.metric.name}: {'a pause for ' if asked.question == 'pause' else ''}harm of {asked.effect:.3g}"
