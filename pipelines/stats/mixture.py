"""From sums of log factors to one e-value a family: averages of e-values are e-values.

Over bets: uniform. Over time: half from the start of the rollout, half restarting at each stage, so that a fault that
begins late is not hidden behind a good past. Over slices: half all traffic, half the slices, evenly.
"""

from __future__ import annotations

import numpy as np

from pipelines.stats.nats import Floats

ONCE, AGAIN = slice(1, None, 2), slice(0, None, 2)
"""Of the bets of a family with sticky units: on a unit's first observation in the rollout, and in each stage."""
LOG_CAP = 690.0
"""e-values are reported up to exp(690) = 1e299, which JSON can hold."""


def log_mean_exp(values: Floats, axis: int | tuple[int, ...]) -> Floats:
    """log of the mean of exp(values) over `axis`; finite values in, finite out."""
    top = np.max(values, axis=axis, keepdims=True)
    total = np.add.reduce(np.exp(values - top), axis=axis)
    size = values.size // max(total.size, 1)
    result: Floats = np.log(total / size) + top.reshape(total.shape)
    return result


def over_time(log_factors: Floats, *, sticky: bool, weights: Floats | None = None) -> Floats:
    """Log e-value from per-stage sums: `log_factors` (..., stages, bets) -> (...).

    `1/2 prod_k M_k + 1/2 mean_k M_k` inside each bet, averaged over bets; a stage not yet opened has M_k = 1.
    `weights` (stages,) take the place of 1/K. `sticky`: units keep their arm over stages, so a unit met again is no new
    draw. The bets `ONCE` are on units met for the first time in the rollout and multiply over its stages; the others
    are on each unit once a stage, each stage by itself at its part of the level: the largest `w_k M_k`. Each of both
    has half of the level.
    """
    if sticky:
        shares = np.full(log_factors.shape[-2], 1.0 / log_factors.shape[-2]) if weights is None else weights
        each = (log_mean_exp(log_factors[..., AGAIN], axis=-1) + np.log(shares)).max(axis=-1)
        either: Floats = np.maximum(log_mean_exp(log_factors[..., ONCE].sum(axis=-2), axis=-1), each) - np.log(2.0)
        return either
    start = log_mean_exp(log_factors.sum(axis=-2), axis=-1)
    if weights is None:
        restart = log_mean_exp(log_factors, axis=(-2, -1))
    else:
        restart = np.logaddexp.reduce(log_mean_exp(log_factors, axis=-1) + np.log(weights), axis=-1)
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
