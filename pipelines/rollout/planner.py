"""How much traffic each question of a policy needs, before the rollout starts.

Two questions a metric: `harm` (how soon is harm of the declared size found) and `proof` (how soon is the promotion
margin ruled out when the challenger is as good as the champion). A bet grows by its expected log factor per request;
the bar is reached after `(log(bar) + cost of mixing) / growth` requests, stage after stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from statistics import NormalDist
from typing import Any, Literal

import msgspec
import numpy as np

from pipelines.collect.rank_pairs import pairs_per_request
from pipelines.contracts.errors import ContractError
from pipelines.rollout.bars import live_stages, proof_bar, proof_stages, rollback_bar
from pipelines.rollout.policy import Metric, Policy, Stage
from pipelines.stats import bets
from pipelines.stats.evidence import GRID
from pipelines.stats.losses import RANK, loss_range
from pipelines.stats.nats import Floats, to_nats

MIXING = 2.3
"""Nats that the mixtures over bets, time and slices cost in the median, as simulated."""

Question = Literal["harm", "proof"]


class BaseRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one metric on the champion: `rate` of events (for a rank loss, of positive labels), `mean` and
    `sd` of a loss or KPI, `paired_sd` of the difference of two models' losses, `sigma` of log latency. `effect`
    replaces the declared harm in the plan.
    """

    rate: float | None = None
    mean: float | None = None
    sd: float | None = None
    paired_sd: float | None = None
    sigma: float = 0.5
    effect: float | None = None


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model's traffic: requests per hour, share of requests that get a label or KPI, base rates by metric; `units`,
    how many different units a stage meets, when the policy randomises units (each is bet on once a stage).
    """

    requests_per_hour: float
    units: int | None = None
    labelled: float = 1.0
    metrics: dict[str, BaseRates] = {}

    @staticmethod
    def parse(mapping: Mapping[str, Any]) -> Rates:
        """The rates in `mapping`; a bare number for a metric is its rate and its mean. Raises ContractError with the
        path of what is wrong.
        """
        body = dict(mapping)
        if isinstance(body.get("metrics"), Mapping):
            body["metrics"] = {
                name: {"rate": base, "mean": base} if isinstance(base, (int, float)) else base
                for name, base in body["metrics"].items()
            }
        try:
            rates = msgspec.convert(body, Rates)
        except msgspec.ValidationError as error:
            raise ContractError(
                "base rates",
                got=str(error),
                expected="requests_per_hour, labelled, metrics.<name>.rate|mean|sd|paired_sd",
            ) from error
        if rates.requests_per_hour <= 0 or not 0 < rates.labelled <= 1:
            raise ContractError(
                "base rates",
                got=f"requests_per_hour {rates.requests_per_hour:g}, labelled {rates.labelled:g}",
                expected="more than 0, and a share in (0, 1]",
            )
        return rates


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What one question needs. None: never, at any length. `stage` is where it is answered; `feasible`: within the
    policy.
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


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All needs of a policy; `feasible` when every required proof fits into the stages."""

    policy_digest: str
    requests: int | None
    hours: float | None
    feasible: bool
    needs: tuple[Need, ...]

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
    """The plan of `policy` at the given traffic. Raises ContractError naming the base rate a metric lacks."""
    unknown = [name for name in rates.metrics if name not in {metric.name for metric in policy.metrics}]
    if unknown:
        policy.metric(unknown[0])
    needs: list[Need] = []
    for metric in policy.metrics:
        if metric.role == "report":
            continue
        base = rates.metrics.get(metric.name, BaseRates())
        if metric.weight > 0.0:
            size = _harm_effect(metric, base)
            needs.append(_need(policy, rates, metric, "harm", size, partial(_harm, metric, base, size)))
        if metric.name in policy.require:
            needs.append(_need(policy, rates, metric, "proof", 0.0, partial(_proof, metric, base)))
    sizes = [stage.requests for stage in policy.stages]
    total = sum(size for size in sizes if size is not None) if None not in sizes else None
    return Plan(
        policy_digest=policy.digest,
        requests=total,
        hours=None if total is None else round(total / rates.requests_per_hour, 3),
        feasible=all(need.feasible for need in needs if need.question == "proof"),
        needs=tuple(needs),
    )


def _required(metric: Metric, base: BaseRates, name: str) -> float:
    value: float | None = getattr(base, name)
    if value is None:
        raise ContractError(f"base rate of {metric.name}", got="nothing", expected=f"metrics.{metric.name}.{name}")
    return value


def _harm_effect(metric: Metric, base: BaseRates) -> float:
    """The harm to plan for: a ratio for events and latency, else an amount in the metric's unit."""
    if base.effect is not None:
        return base.effect
    if metric.kind in ("event", "quantile"):
        return metric.harm_ratio or 2.0
    if metric.paired and metric.kind != "paired_loss":
        return 2.0 * ((metric.tolerance_abs or 0.0) + (metric.tolerance_rel or 0.0) * (base.mean or 0.0))
    return (metric.harm_abs or 0.0) + (metric.harm_rel or 0.0) * abs(_required(metric, base, "mean"))


def _need(
    policy: Policy, rates: Rates, metric: Metric, question: Question, effect: float, growths: Callable[[Stage], Floats]
) -> Need:
    """Walks the stages until the best bet has grown past the bar; the last stage that counts may be prolonged."""
    bar = math.log(rollback_bar(policy, metric) if question == "harm" else proof_bar(policy))
    names = live_stages(policy, metric) if question == "harm" else proof_stages(policy, metric)
    target = bar + MIXING
    usable = rates.labelled if metric.kind in ("paired_loss", "mean") else 1.0
    if metric.kind == "paired_loss" and metric.loss == RANK:
        base = rates.metrics.get(metric.name, BaseRates())
        usable *= pairs_per_request(_required(metric, base, "rate"))
    grown = np.zeros(GRID)
    walked, exposed = 0.0, 0.0
    last = max((k for k, stage in enumerate(policy.stages) if stage.name in names), default=-1)
    for k, stage in enumerate(policy.stages[: last + 1]):
        growth = growths(stage) * usable if stage.name in names else np.zeros(GRID)
        share = stage.share if stage.randomised and stage.share is not None else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.where(growth > 0.0, (target - grown) / growth, np.inf)
        wanted = max(float(left.min()), 0.0)
        size = math.inf if stage.requests is None else float(stage.requests)
        if policy.unit == "unit" and rates.units is not None:
            # A unit is bet on once a stage: a stage tells as much as its units, spread over its requests.
            growth = growth * min(1.0, rates.units / size)
        if wanted <= size or (k == last and math.isfinite(wanted)):
            return _answer(
                rates, metric, question, effect, stage, walked + wanted, exposed + wanted * share, wanted <= size
            )
        if k < last:
            grown = grown + growth * size
            walked, exposed = walked + size, exposed + size * share
    return _answer(rates, metric, question, effect, None, math.inf, math.inf, False)


def _answer(
    rates: Rates,
    metric: Metric,
    question: Question,
    effect: float,
    stage: Stage | None,
    walked: float,
    exposed: float,
    fits: bool,
) -> Need:
    what = f"harm of {effect:.3g}" if question == "harm" else "the proof for promotion"
    if stage is None or not math.isfinite(walked):
        text = f"{metric.name}: {what} cannot be had in these stages at any length"
        return Need(
            metric=metric.name, question=question, effect=effect, stage=None, challenger_requests=None, requests=None,
            hours=None, feasible=False, sentence=text,
        )  # fmt: skip
    hours = walked / rates.requests_per_hour
    text = f"{metric.name}: {what} needs {math.ceil(walked):,} requests ({math.ceil(exposed):,} exposed), {hours:.1f} h"
    text += f"; answered in {stage.name}" if fits else f"; {stage.name} ends before: prolong it or widen the margin"
    return Need(
        metric=metric.name, question=question, effect=effect, stage=stage.name, challenger_requests=math.ceil(exposed),
        requests=math.ceil(walked), hours=round(hours, 3), feasible=fits, sentence=text,
    )  # fmt: skip


# --- expected growth of each bet of the grid: nats per request, in one stage ---------------------------------


def _share(stage: Stage) -> float | None:
    return stage.share if stage.randomised else None


def _assigned(share: float, rate1: float, rate0: float, one: Floats, zero: Floats) -> Floats:
    """Growth from events by arm: the arm's rate times the log factor it earns."""
    return share * rate1 * one + (1.0 - share) * rate0 * zero


def _bet(thetas: Floats, share: float, *, challenger: bool) -> Floats:
    return to_nats(bets.assignment_factors(thetas, share, challenger=challenger))


def _harm(metric: Metric, base: BaseRates, effect: float, stage: Stage) -> Floats:
    share = _share(stage)
    if metric.kind == "event":
        rate = _required(metric, base, "rate")
        worse = min(rate * effect, 1.0)
        if share is None:
            # Discordant pairs: one arm has the event, the other does not.
            return 2.0 * _assigned(
                0.5, worse * (1 - rate), rate * (1 - worse),
                _bet(bets.EVENT_THETAS, 0.5, challenger=True), _bet(bets.EVENT_THETAS, 0.5, challenger=False),
            )  # fmt: skip
        return _assigned(
            share, worse, rate,
            _bet(bets.EVENT_THETAS, share, challenger=True), _bet(bets.EVENT_THETAS, share, challenger=False),
        )  # fmt: skip
    if metric.kind == "quantile":
        return _latency(metric, base, share, effect, slower=True)
    return _bounded(metric, base, stage, effect, proof=False)


def _proof(metric: Metric, base: BaseRates, stage: Stage) -> Floats:
    share = _share(stage)
    if metric.kind == "event":
        rate, margin = _required(metric, base, "rate"), metric.promote_margin_abs or 0.0
        if share is None:
            one, zero = rate * (1 - rate), rate * (1 - rate)
            outcomes = np.array([margin - 1.0, margin + 1.0, margin])
            return np.array([one, zero, 1 - one - zero]) @ to_nats(bets.mean_factors(outcomes, 1.0 - margin))
        outcomes = np.array([margin - 1.0 / share, margin + 1.0 / (1.0 - share), margin])
        chances = np.array([share * rate, (1 - share) * rate, 1 - rate])
        return chances @ to_nats(bets.mean_factors(outcomes, 1.0 / share - margin))
    if metric.kind == "quantile":
        return _latency(metric, base, share, 1.0 / (1.0 + (metric.promote_margin_rel or 0.0)), slower=False)
    mean = abs(base.mean or 0.0)
    margin = (metric.promote_margin_abs or 0.0) + (metric.promote_margin_rel or 0.0) * mean
    return _bounded(metric, base, stage, margin, proof=True)


def _latency(metric: Metric, base: BaseRates, share: float | None, factor: float, *, slower: bool) -> Floats:
    """Latencies are log-normal with `sigma`; the challenger's are `factor` times the champion's."""
    assert metric.q is not None
    normal = NormalDist()
    above0 = 1.0 - metric.q
    above1 = 1.0 - normal.cdf(normal.inv_cdf(metric.q) - math.log(factor) / base.sigma)
    if share is None:
        if not slower:
            return np.zeros(GRID)
        thetas = bets.exceedance_thetas(metric.q, slower=True)
        return 2.0 * _assigned(
            0.5, above1 * (1 - above0), above0 * (1 - above1),
            _bet(thetas, 0.5, challenger=True), _bet(thetas, 0.5, challenger=False),
        )  # fmt: skip
    growth = np.zeros(GRID)
    for exceeds, one, zero in ((True, above1, above0), (False, 1 - above1, 1 - above0)):
        factors = [
            to_nats(bets.exceedance_factors(metric.q, share, slower=slower, exceeds=exceeds, challenger=arm))
            for arm in (True, False)
        ]
        growth += _assigned(share, one, zero, *factors)
    return growth


def _bounded(metric: Metric, base: BaseRates, stage: Stage, shift: float, *, proof: bool) -> Floats:
    """`lambda shift - lambda^2 (variance + shift^2) / 2`, the growth of `1 + lambda x` to second order."""
    share = _share(stage)
    if metric.kind == "mean":
        if share is None:
            return np.zeros(GRID)
        low, high = metric.range or (0.0, 1.0)
        centre = base.mean if base.mean is not None else (low + high) / 2
        reach = max(high - centre, centre - low) / min(share, 1.0 - share)
        variance = _required(metric, base, "sd") ** 2 / (share * (1.0 - share))
        if proof:
            relative = metric.promote_margin_rel or 0.0
            reach = reach * (1.0 + relative) + relative * abs(centre)
    else:
        least, most = (
            loss_range(metric.loss, clip=metric.clip, cap=metric.cap) if metric.kind == "paired_loss" else (0.0, 1.0)
        )
        spread = base.paired_sd if base.paired_sd is not None else base.sd
        if spread is None:
            _required(metric, base, "paired_sd")
        reach, variance = most - least, (spread or 0.0) ** 2
    fraction = bets.MEAN_FRACTIONS / reach
    growth: Floats = fraction * shift - 0.5 * fraction**2 * (variance + shift**2)
    return growth
