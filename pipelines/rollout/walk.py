"""One question of a policy on its way through the stages: the e-value to be expected after so many requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np

from pipelines.rollout import growth
from pipelines.rollout.bars import live_stages, proof_bar, proof_stages, restart_weights, rollback_bar
from pipelines.rollout.policy import Metric, Policy, Stage
from pipelines.rollout.rates import BaseRates, Rates, required
from pipelines.stats import centre, cuts, latency_blocks
from pipelines.stats.evidence import GRID
from pipelines.stats.mixture import AGAIN, ONCE, log_mean_exp, over_time
from pipelines.stats.nats import Floats

Question = Literal["harm", "pause", "proof"]
BACKTEST_LEAST = 500
"""Logged requests a backtest needs when its stage does not say."""
ENDLESS = 1e12
"""Requests that stand for a stage of any length."""


def harm_effect(metric: Metric, base: BaseRates) -> float:
    """The harm to plan for: a ratio for events and latency, else an amount in the metric's unit."""
    if base.effect is not None and metric.promote != "better":
        return base.effect
    if metric.kind in ("event", "quantile"):
        return metric.harm_ratio or 2.0
    if metric.paired and metric.kind != "paired_loss":
        return 2.0 * ((metric.tolerance_abs or 0.0) + (metric.tolerance_rel or 0.0) * (base.mean or 0.0))
    declared = (metric.harm_abs or 0.0) + (metric.harm_rel or 0.0) * abs(base.mean or 0.0)
    return declared or 0.05 * abs(required(metric.name, base, "mean"))


def _gain(metric: Metric, base: BaseRates) -> float:
    """The improvement that a metric which must be better is planned for: as large as the harm that would matter."""
    if metric.promote != "better":
        return 0.0
    return base.effect if base.effect is not None else harm_effect(metric, base)


class Walk(msgspec.Struct, frozen=True, kw_only=True):
    """One question on its way through the stages. `growths` (K, GRID) are nats a request in each stage that counts;
    `sizes` how many requests each of the policy's stages lasts.
    """

    policy: Policy
    rates: Rates
    metric: Metric
    question: Question
    effect: float
    counted: tuple[int, ...]
    growths: Floats
    sizes: tuple[float, ...]

    @staticmethod
    def of(policy: Policy, rates: Rates, metric: Metric, question: Question, effect: float = 0.0) -> Walk:
        """The walk of a question; `effect` is the harm it is asked about. Raises as `plan`."""
        names = proof_stages(policy, metric) if question == "proof" else live_stages(policy, metric)
        # What a bake shows are the pairs of the stages before it, as their labels mature: nobody plans with them.
        counted = tuple(k for k, stage in enumerate(policy.stages) if stage.name in names and stage.compares)
        base = rates.of(metric.name)
        usable = growth.informative(metric, base, rates.labelled)
        if question == "proof" and metric.per_slice and rates.slices:
            usable *= min(rates.slices.values())
        rows = []
        for stage in (policy.stages[k] for k in counted):
            if question == "proof":
                row = growth.proof(metric, base, _gain(metric, base), stage)
            elif question == "harm" and metric.kind == "quantile":
                row = growth.blocks(metric, base, effect, stage, rates)
            else:
                row = growth.harm(metric, base, effect, stage)
            rows.append(row * usable)
        growths = np.array(rows).reshape(len(rows), GRID)
        sizes = tuple(lasts(stage, rates) for stage in policy.stages)
        return Walk(
            policy=policy, rates=rates, metric=metric, question=question, effect=effect, counted=counted,
            growths=growths, sizes=sizes,
        )  # fmt: skip

    @property
    def bar(self) -> float:
        """The log e-value that answers the question."""
        return math.log(proof_bar(self.policy) if self.question == "proof" else rollback_bar(self.policy, self.metric))

    def log_e(self, requests: Sequence[float]) -> float:
        """The expected log e-value after so many requests in each stage that counts."""
        seen = np.array([max(n - self._blind(k), 0.0) for k, n in zip(self.counted, requests, strict=True)])
        nats = self.growths * seen[:, None]
        sticky = self.policy.unit == "unit"
        if sticky and self.rates.units is not None:
            before = seen.cumsum() - seen
            nats[:, AGAIN] = self.growths[:, AGAIN] * self._units_met(seen)[:, None]
            nats[:, ONCE] = self.growths[:, ONCE] * (self._units_met(before + seen) - self._units_met(before))[:, None]
        if self.question == "proof" and not sticky:
            return float(log_mean_exp(nats.sum(axis=0), axis=-1))
        # Bets between blocks of time are not on units, and have no slices.
        by_block = self.question == "harm" and self.metric.kind == "quantile"
        weights = restart_weights(self.policy, tuple(self.policy.stages[k].name for k in self.counted))
        found = float(over_time(nats, sticky=sticky and not by_block, weights=weights))
        sliced = self.policy.slices and self.question != "proof" and not by_block
        return float(np.logaddexp(found, 0.0)) - math.log(2.0) if sliced else found

    def _units_met(self, requests: Floats) -> Floats:
        """Observations of so many requests that are the first of their unit."""
        base, units = self.rates.of(self.metric.name), float(self.rates.units or 1)
        # A unit's first event is bet on, whenever it comes; of other observations, its first.
        often = 1.0
        if self.metric.kind == "event" and self.question == "harm":
            often = max(min(required(self.metric.name, base, "rate") * (1.0 + self.effect) / 2.0, 1.0), 1e-9)
        met: Floats = units * -np.expm1(-requests * often / units) / often
        return met

    def _blind(self, k: int) -> float:
        """Requests of the first live stage that pass before there is a bet: warm-up, and what the past must tell."""
        if k != next((n for n, stage in enumerate(self.policy.stages) if stage.kind != "backtest"), -1):
            return 0.0
        champion = 1.0 - (growth.share_of(self.policy.stages[k]) or 0.0)
        blind = float(self.policy.warmup_requests)
        if self.metric.kind == "quantile":
            blind += cuts.BLOCK / champion
        if self.metric.kind == "mean":
            blind += centre.BLOCK / self.rates.labelled
        return blind

    def fits(self) -> bool:
        """Whether the question is answered before its last stage ends."""
        requests = [0.0] * len(self.counted)
        for place, k in enumerate(self.counted):
            requests[place] = min(self.sizes[k], ENDLESS)
            if self.log_e(requests) >= self.bar:
                return True
        return False

    def reached(self) -> list[float] | None:
        """Requests of each stage that counts, when the answer is in; the last is prolonged as needed. None: never."""
        requests = [0.0] * len(self.counted)
        for place, k in enumerate(self.counted):
            most = min(self.sizes[k], ENDLESS) if place < len(self.counted) - 1 else ENDLESS
            requests[place] = most
            if self.log_e(requests) >= self.bar:
                requests[place] = _first(lambda n: self._with(requests, place, n) >= self.bar, most)  # noqa: B023  # called at once
                return requests
        return None

    def _with(self, requests: list[float], place: int, n: float) -> float:
        return self.log_e([*requests[:place], n, *requests[place + 1 :]])

    def late(self) -> float:
        """Requests that come while the last observation matures."""
        wait_s = 0.0
        if self.metric.kind == "mean" and self.policy.kpi_maturity_s is not None:
            wait_s = self.policy.kpi_maturity_s
        elif self.metric.kind in ("paired_loss", "mean"):
            wait_s = self.policy.label_maturity_s
        elif self.metric.kind == "quantile" and self.question == "harm":
            wait_s = latency_blocks.BLOCK_US / 1e6 + self.policy.response_deadline_s
        return wait_s / 3600.0 * self.rates.requests_per_hour

    def least_time(self, replayed: float) -> float:
        """Requests before which a metric on pairs does not act; what was replayed counts."""
        if not self.metric.paired:
            return 0.0
        return self.policy.min_event_time_s / 3600.0 * self.rates.requests_per_hour - replayed

    def exposed(self, walked: float) -> float:
        """Requests that the challenger has answered after so many live ones; the last stage before the bake goes on."""
        live = [k for k, stage in enumerate(self.policy.stages) if stage.kind not in ("backtest", "bake")]
        exposed = 0.0
        for k in live:
            spent = walked if k == live[-1] else min(walked, self.sizes[k])
            exposed += spent * (growth.share_of(self.policy.stages[k]) or 0.0)
            walked -= spent
        return exposed


def lasts(stage: Stage, rates: Rates) -> float:
    """Requests that a stage lasts at the least: its number of them, or what comes in its minimum time."""
    if stage.kind == "backtest":
        return float(stage.requests or BACKTEST_LEAST)
    if stage.requests is None:
        return math.inf
    return max(float(stage.requests), (stage.min_event_time_s or 0.0) / 3600.0 * rates.requests_per_hour)


def smallest_harm(asked: Walk) -> float | None:
    """The smallest harm that is found before the stages end, to one percent; None when even the largest is not."""
    ratio = asked.metric.kind in ("event", "quantile")
    base = asked.rates.of(asked.metric.name)
    if ratio:
        most = 1.0 / required(asked.metric.name, base, "rate") if asked.metric.kind == "event" else 20.0
    else:
        most = 100.0 * harm_effect(asked.metric, base)
    if most <= 0.0:
        return None

    def found(effect: float) -> bool:
        size = 1.0 + effect if ratio else effect
        return Walk.of(asked.policy, asked.rates, asked.metric, asked.question, size).fits()

    span = most - 1.0 if ratio else most
    if not found(span):
        return None
    least = _first(found, span, within=0.01)
    return float(f"{1.0 + least if ratio else least:.3g}")


def _first(holds: Callable[[float], bool], most: float, within: float = 0.001) -> float:
    """The least positive number for which it holds, to a relative precision; it holds at `most`."""
    low, high = most * 1e-15, most
    while high / low > 1.0 + within:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
