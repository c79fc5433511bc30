"""How fast each bet of a metric's mixture grows in a stage: expected nats a request, (GRID,).

Events and latencies: the rate of each outcome by arm times the log factor it earns. Bounded means, to second order:
`lambda shift - lambda^2 (variance + shift^2) / 2`, the growth of `1 + lambda x`. Latency between blocks: the mean log
factor over blocks drawn as the traffic would fill them.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np

from pipelines.collect.rank_pairs import pairs_per_request
from pipelines.rollout.policy import Metric, Stage
from pipelines.rollout.rates import BaseRates, Rates, required
from pipelines.stats import bets, latency_blocks
from pipelines.stats.evidence import GRID
from pipelines.stats.losses import RANK, loss_range
from pipelines.stats.nats import Floats, to_nats

BLOCKS_DRAWN = 4_000
"""Blocks of 60 seconds that stand for all blocks of a stage; drawn from a fixed seed, so a plan is the same twice."""


def share_of(stage: Stage) -> float | None:
    """The challenger's share where the arm is drawn, None where both arms answer."""
    return stage.share if stage.randomised else None


def informative(metric: Metric, base: BaseRates, labelled: float) -> float:
    """The share of requests that the metric learns from: all, the labelled ones, or the pairs they make."""
    if metric.kind not in ("paired_loss", "mean"):
        return 1.0
    if metric.kind == "paired_loss" and metric.loss == RANK:
        return labelled * pairs_per_request(required(metric.name, base, "rate"))
    return labelled


def harm(metric: Metric, base: BaseRates, effect: float, stage: Stage) -> Floats:
    """Growth of the bets against "no harm" under harm of size `effect`: a ratio for events and latencies."""
    share = share_of(stage)
    if metric.kind == "event":
        rate = required(metric.name, base, "rate")
        worse = min(rate * effect, 1.0)
        if share is None:
            # Discordant pairs: one arm has the event, the other does not.
            return 2.0 * _assigned(0.5, worse * (1 - rate), rate * (1 - worse), *_bets(bets.EVENT_THETAS, 0.5))
        return _assigned(share, worse, rate, *_bets(bets.EVENT_THETAS, share))
    if stage.kind == "backtest" and metric.kind == "quantile":
        return np.zeros(GRID)
    if metric.kind == "quantile":
        return _latency(metric, base, share, effect, slower=True)
    return _bounded(metric, base, stage, effect, proof=False)


def proof(metric: Metric, base: BaseRates, gain: float, stage: Stage) -> Floats:
    """Growth of the bets against "worse by the margin", for a challenger that is as good as the champion, or better by
    `gain` (of a mean or a loss, in its unit).
    """
    share = share_of(stage)
    if metric.kind == "event":
        rate, margin = required(metric.name, base, "rate"), metric.promote_margin_abs or 0.0
        if share is None:
            one = rate * (1 - rate)
            outcomes = np.array([margin - 1.0, margin + 1.0, margin])
            return np.array([one, one, 1 - 2 * one]) @ to_nats(bets.mean_factors(outcomes, 1.0 - margin))
        outcomes = np.array([margin - 1.0 / share, margin + 1.0 / (1.0 - share), margin])
        chances = np.array([share * rate, (1 - share) * rate, 1 - rate])
        return chances @ to_nats(bets.mean_factors(outcomes, 1.0 / share - margin))
    if metric.kind == "quantile":
        if share is None:
            return np.zeros(GRID)
        return _latency(metric, base, share, 1.0 / (1.0 + (metric.promote_margin_rel or 0.0)), slower=False)
    mean = abs(base.mean or 0.0) if metric.promote_margin_rel is None else abs(required(metric.name, base, "mean"))
    margin = (metric.promote_margin_abs or 0.0) + (metric.promote_margin_rel or 0.0) * mean
    return _bounded(metric, base, stage, margin + gain, proof=True)


def blocks(metric: Metric, base: BaseRates, effect: float, stage: Stage, rates: Rates) -> Floats:
    """Growth, a request, of the bets on blocks of 60 seconds when the challenger's latencies are `effect` times the
    champion's; nothing where traffic is so sparse that hardly a block has answers of both arms.
    """
    share = share_of(stage)
    if share is None or metric.q is None:
        return np.zeros(GRID)
    per_block = rates.requests_per_hour * latency_blocks.BLOCK_US / 3.6e9
    above0, above1 = exceedances(metric, base, effect)
    return _block_growth(round(per_block, 9), share, round(above0, 9), round(above1, 9), metric.q) / per_block


@cache
def _block_growth(per_block: float, share: float, above0: float, above1: float, q: float) -> Floats:
    """Mean log factors of one block of that many requests."""
    rng = np.random.default_rng(0)
    n1, n0 = rng.poisson(per_block * share, BLOCKS_DRAWN), rng.poisson(per_block * (1 - share), BLOCKS_DRAWN)
    e1, e0 = rng.binomial(n1, above1), rng.binomial(n0, above0)
    judged = (n1 >= latency_blocks.LEAST) & (n0 >= latency_blocks.LEAST)
    if judged.sum() < BLOCKS_DRAWN / 400:
        return np.zeros(GRID)
    counts = np.stack([n0[judged], e0[judged], n1[judged], e1[judged]], axis=1)
    difference = counts[:, 3] / counts[:, 2] - counts[:, 1] / counts[:, 0]
    scale = np.full(len(counts), 2.0 * float(np.abs(difference).mean()))
    growth: Floats = latency_blocks.block_factors(counts, scale, q).sum(axis=0) / BLOCKS_DRAWN
    return growth


def exceedances(metric: Metric, base: BaseRates, factor: float) -> tuple[float, float]:
    """The champion's and the challenger's chance to exceed the champion's q-quantile: log-normal latencies of spread
    `sigma`, the challenger's `factor` times as long.
    """
    assert metric.q is not None  # the policy has asked for it
    normal = NormalDist()
    reached = normal.inv_cdf(metric.q) - math.log(factor) / base.sigma
    return 1.0 - metric.q, 1.0 - normal.cdf(reached)


def _assigned(share: float, rate1: float, rate0: float, one: Floats, zero: Floats) -> Floats:
    """Growth from events by arm: the arm's rate times the log factor it earns."""
    return share * rate1 * one + (1.0 - share) * rate0 * zero


def _bets(thetas: Floats, share: float) -> tuple[Floats, Floats]:
    one, zero = (to_nats(bets.assignment_factors(thetas, share, challenger=arm)) for arm in (True, False))
    return one, zero


def _latency(metric: Metric, base: BaseRates, share: float | None, factor: float, *, slower: bool) -> Floats:
    assert metric.q is not None  # the policy has asked for it
    above0, above1 = exceedances(metric, base, factor)
    if share is None:
        thetas = bets.exceedance_thetas(metric.q, slower=True)
        return 2.0 * _assigned(0.5, above1 * (1 - above0), above0 * (1 - above1), *_bets(thetas, 0.5))
    growth = np.zeros(GRID)
    for exceeds, one, zero in ((True, above1, above0), (False, 1 - above1, 1 - above0)):
        factors = [
            to_nats(bets.exceedance_factors(metric.q, share, slower=slower, exceeds=exceeds, challenger=arm))
            for arm in (True, False)
        ]
        growth += _assigned(share, one, zero, *factors)
    return growth


def _bounded(metric: Metric, base: BaseRates, stage: Stage, shift: float, *, proof: bool) -> Floats:
    share, relative = share_of(stage), metric.promote_margin_rel or 0.0
    if metric.kind == "mean":
        if share is None:
            return np.zeros(GRID)
        low, high = metric.range or (0.0, 1.0)
        centre = base.mean if base.mean is not None else (low + high) / 2
        reach = max(high - centre, centre - low) / min(share, 1.0 - share)
        variance = required(metric.name, base, "sd") ** 2 / (share * (1.0 - share))
        if proof:
            reach = reach * (1.0 + relative) + relative * abs(centre)
    elif not stage.pairs:
        return np.zeros(GRID)
    elif metric.kind == "paired_loss":
        least, most = loss_range(metric.loss, clip=metric.clip, cap=metric.cap)
        reach = most - (1.0 + relative) * least - (metric.promote_margin_abs or 0.0) if proof else most - least
        variance = _paired_variance(metric, base)
    else:
        # Only what lies beyond the tolerance counts as harm; a shift is bet on both ways with half of the bets.
        allowed = (metric.tolerance_abs or 0.0) + (metric.tolerance_rel or 0.0) * abs(base.mean or 0.0)
        shift -= allowed
        reach = max(allowed, 1e-9) + (1.0 if metric.kind == "paired_mean" else 0.0)
        variance = _paired_variance(metric, base)
    fraction = bets.MEAN_FRACTIONS / reach
    growth: Floats = fraction * shift - 0.5 * fraction**2 * (variance + shift**2)
    return growth


def _paired_variance(metric: Metric, base: BaseRates) -> float:
    spread = base.paired_sd if base.paired_sd is not None else base.sd
    return (spread if spread is not None else required(metric.name, base, "paired_sd")) ** 2
