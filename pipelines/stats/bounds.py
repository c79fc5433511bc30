"""Anytime-valid intervals for running means of bounded observations, from (n, sum, sum of squares).

Fan's inequality, as in the empirical-Bernstein confidence sequences of Howard, Ramdas, McAuliffe & Sekhon (2021,
theorem 4) with the fixed prediction 0: for X >= -c and 0 <= l < 1, `exp(l (S - n mu) / c - psi(l) V / c^2)` with
psi(l) = -log(1 - l) - l is a supermartingale started at one. A union over a fixed grid of l keeps the bound simple.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pipelines.stats.nats import Floats

_LAMBDAS: Final[Floats] = np.geomspace(0.0005, 0.9, 16)
_PSI: Final[Floats] = -np.log1p(-_LAMBDAS) - _LAMBDAS


def lower_bound(n: int, total: float, squares: float, bound: float, alpha: float) -> float:
    """A value that the mean of the first n conditional means exceeds, at all n at once, with probability 1 - alpha.

    `total` and `squares` are the sums of X and X**2; every X >= -bound. Raises ZeroDivisionError for n = 0.
    """
    need = np.log(len(_LAMBDAS) / alpha)
    candidates = (total - bound * (_PSI * squares / bound**2 + need) / _LAMBDAS) / n
    return max(float(candidates.max()), -bound)


def interval(n: int, total: float, squares: float, low: float, high: float, alpha: float) -> tuple[float, float]:
    """Two-sided interval for the running mean of X in [-low, high], level 1 - alpha over all n at once."""
    return (
        lower_bound(n, total, squares, low, alpha / 2),
        -lower_bound(n, -total, squares, high, alpha / 2),
    )
