"""Population stability index: how far one distribution has moved from another.

    PSI = sum over bins of (c - r) ln(c / r)

the symmetrised Kullback-Leibler divergence of the binned shares r (reference) and c (current). It has no p-value that
means anything at these sizes; it measures the size of a shift, and a test beside it says whether chance explains it.
Siddiqi, Credit Risk Scorecards (2006), ch. 9: below 0.1 little, above 0.25 much.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipelines.monitoring.columns import Category, Numbers

BINS = 10
PRIOR = 0.5
"""Added to every bin's count (Jeffreys), so that an empty bin gives a large index and not an infinite one."""


def of_counts(reference: Sequence[float], current: Sequence[float]) -> float:
    """The index of two histograms over the same bins. 0 when both have no rows."""
    r = np.asarray(reference, dtype=np.float64) + PRIOR
    c = np.asarray(current, dtype=np.float64) + PRIOR
    r, c = r / r.sum(), c / c.sum()
    return float(np.sum((c - r) * np.log(c / r)))


def of_numbers(reference: Numbers, current: Numbers, bins: int = BINS) -> float:
    """The index over the reference's quantile bins; missing values (NaN) are a bin of their own."""
    edges = quantile_edges(reference, bins)
    return of_counts(_histogram(reference, edges), _histogram(current, edges))


def of_categories(reference: Sequence[Category], current: Sequence[Category]) -> float:
    """The index over the values either side has."""
    values = sorted({*reference, *current}, key=repr)
    index = {value: position for position, value in enumerate(values)}
    return of_counts(
        np.bincount([index[value] for value in reference], minlength=len(values)).tolist(),
        np.bincount([index[value] for value in current], minlength=len(values)).tolist(),
    )


def quantile_edges(reference: Numbers, bins: int = BINS) -> Numbers:
    """Inner bin edges at the reference's quantiles, each value once: a column of few values gets few bins."""
    known = reference[~np.isnan(reference)]
    if known.size == 0:
        return np.empty(0)
    distinct = np.unique(known)
    if distinct.size <= bins:
        return np.asarray([(low + high) / 2 for low, high in pairwise(distinct)])
    return np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1]))


def _histogram(values: Numbers, edges: Numbers) -> list[float]:
    missing = np.isnan(values)
    counts = np.bincount(np.searchsorted(edges, values[~missing], side="right"), minlength=edges.size + 1)
    return [*counts.astype(float), float(missing.sum())]
