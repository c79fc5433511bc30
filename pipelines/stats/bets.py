"""The bets: log factors with mean at most one under their null, as integers (see `nats`).

A factor is chosen before what it bets on is seen, so products over time are test martingales and P(sup >= 1/a) <= a.

Assignment bets (Lindon & Malek 2022; Shekhar & Ramdas 2023; Grunwald, Henzi & Lardy 2024): when the outcome does not
depend on the arm, the arm given outcome and past is Bernoulli(share). A discordant pair is the same bet at share 1/2.
Bounded means (Waudby-Smith & Ramdas 2024): `1 + lambda * x` with lambda fixed and x bounded so that it stays positive.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.stats.evidence import GRID
from pipelines.stats.nats import Floats, Ints, floor_nats

EVENT_THETAS: Final[Floats] = np.array([1.25, 1.6, 2.2, 3.5, 6.0, 12.0, 30.0, 100.0])
"""How many times likelier the event is on the challenger, one bet each."""
RATIO_THETAS: Final[Floats] = np.array([0.25, 0.6, 0.85, 0.95, 1.05, 1.18, 1.67, 4.0])
"""Sample ratio: how far the odds of being sent to the challenger are off, both ways."""
MEAN_FRACTIONS: Final[Floats] = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95])
"""Bounded means: lambda as a fraction of the largest that keeps every factor positive."""

assert len(EVENT_THETAS) == len(RATIO_THETAS) == len(MEAN_FRACTIONS) == GRID


def assignment_factors(thetas: Floats, share: float, *, challenger: bool) -> Ints:
    """(GRID,) log of `(theta if challenger else 1) / (share * theta + 1 - share)`: the bet on who had the event."""
    return floor_nats((np.log(thetas) if challenger else 0.0) - np.log(share * thetas + 1.0 - share))


def exceedance_thetas(q: float, *, slower: bool) -> Floats:
    """(GRID,) ratios of the probability to exceed the champion's q-quantile, each below 1 / (1 - q)."""
    if slower:
        top = min(50.0, 0.95 / (1.0 - q))
        return np.geomspace(min(1.06, 0.5 * (1 + top)), top, GRID)
    return np.linspace(0.94, 0.1, GRID)


def exceedance_factors(q: float, share: float, *, slower: bool, exceeds: bool, challenger: bool) -> Ints:
    """(GRID,) log factors for "the latency lies above (or below) the champion's running q-quantile".

    The likelihood ratio is `theta` above the cut and `(1 - theta (1 - q)) / q` below it. It is monotone in the
    latency, so the mean is at most one for every challenger that is stochastically not slower (`slower`), or not
    faster (else).
    """
    thetas = exceedance_thetas(q, slower=slower)
    ratio = thetas if exceeds else (1.0 - thetas * (1.0 - q)) / q
    return assignment_factors(ratio, share, challenger=challenger)


def mean_factors(x: npt.ArrayLike, largest: npt.ArrayLike) -> Ints:
    """(n, GRID) log of `1 + f * x / largest` for the fractions f of `MEAN_FRACTIONS`; needs x >= -largest.

    `x` has mean at most zero under the null. `largest` (scalar or (n,)) is the declared bound of -x.
    """
    scaled = np.asarray(x, dtype=np.float64) / np.asarray(largest, dtype=np.float64)
    # A bound is a promise about the data; rounding may miss it by an ulp, and the clip then moves the factor by 1e-16.
    scaled = np.maximum(scaled, -1.0)
    products = np.multiply.outer(scaled, MEAN_FRACTIONS)
    return floor_nats(np.log1p(products, out=products))
