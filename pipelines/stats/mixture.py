"""From sums of log factors to one e-value a family: averages of e-values are e-values.

Over bets: uniform. Over time: half from the start of the rollout, half restarting at each stage, so that a fault that
begins late is not hidden behind a good past. Over slices: half all traffic, half the slices, evenly.
"""

from __future__ import annotations

import numpy as np

from pipelines.stats.nats import Floats

LOG_CAP = 690.0
"""e-values are reported up to exp(690) = 1e299, which JSON can hold."""


def log_mean_exp(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """log of the mean of exp(values) over `axis`; finite values in, finite out."""
    top = np.max(values, axis=axis, keepdims=True)
    total = np.add.reduce(np.exp(values - top), axis=axis)
    size = values.size // max(total.size, 1)
    result: Floats = np.log(total / size) + top.reshape(total.shape)
    return result


def over_time(log_factors: Floats, *, sticky: bool) -> Floats:
    """Log e-value from per-stage sums: `log_factors` (..., stages, bets) -> (...).

    `1/2 prod_k M_k + 1/2 mean_k M_k` inside each bet, averaged over bets; a stage not yet opened has M_k = 1.
    `sticky` (units keep their arm over stages, so stages are no longer independent draws): each stage by itself at a
    level divided by the number of stages, which is the largest `M_k / K`.
    """
    stages = log_factors.shape[-2]
    if sticky:
        each: Floats = log_mean_exp(log_factors, axis=-1).max(axis=-1) - np.log(stages)
        return each
    start = log_mean_exp(log_factors.sum(axis=-2), axis=-1)
    restart = log_mean_exp(log_factors, axis=(-2, -1))
    both: Floats = np.logaddexp(start, restart) - np.log(2.0)
    return both


def over_slices(overall: Floats, slices: Floats, max_slices: int) -> Floats:
    """Log e-value of a family from `overall` (...) and `slices` (..., s): half each; slices not seen yet count as one.

    A family with fewer than two slices is its overall e-value.
    """
    seen = slices.shape[-1]
    if seen < 2:
        return overall
    room = max(seen, max_slices)
    top = np.maximum(slices.max(axis=-1), 0.0)
    total = np.exp(slices - top[..., None]).sum(axis=-1) + (room - seen) * np.exp(-top)
    mean = np.log(total / room) + top
    both: Floats = np.logaddexp(overall, mean) - np.log(2.0)
    return both


def e_value(log_e: float) -> float:
    """exp(log_e), capped at 1e299."""
    return float(np.exp(min(log_e, LOG_CAP)))
