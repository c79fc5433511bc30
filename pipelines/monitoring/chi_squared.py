"""Pearson's chi-squared test that two samples of categories come from one distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipelines.monitoring.columns import Category

LEAST_EXPECTED = 5.0
"""Values expected less often than this in either sample are taken together (Cochran 1954), or the law does not hold."""


class ChiSquared(NamedTuple):
    """The statistic, its degrees of freedom and the chance of one this large."""

    statistic: float
    degrees: int
    p_value: float


def test(reference: Sequence[Category], current: Sequence[Category]) -> ChiSquared:
    """Test two samples of categories; with fewer than two values left nothing can differ (p-value 1)."""
    table = _table(reference, current)
    if table.shape[1] < 2 or (table.sum(axis=1) == 0).any():
        return ChiSquared(0.0, 0, 1.0)
    from scipy.stats import chi2

    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    degrees = table.shape[1] - 1
    return ChiSquared(statistic, degrees, float(chi2.sf(statistic, degrees)))


def _table(reference: Sequence[Category], current: Sequence[Category]) -> np.ndarray:
    """Counts, 2 x values: rare values are added up in one column; a rest that is still rare joins the next rarest."""
    first, second = Counter(reference), Counter(current)
    rows = len(reference) + len(current)
    share = min(len(reference), len(current)) / rows if rows else 0.0
    ordered = sorted({*first, *second}, key=lambda value: (first[value] + second[value], repr(value)))
    columns: list[tuple[int, int]] = []
    rest = (0, 0)
    for value in ordered:
        pair = (first[value], second[value])
        if (rest != (0, 0) and sum(rest) * share < LEAST_EXPECTED) or sum(pair) * share < LEAST_EXPECTED:
            rest = (rest[0] + pair[0], rest[1] + pair[1])
        else:
            columns.append(pair)
    if rest != (0, 0):
        columns.append(rest)
    return np.asarray(columns, dtype=np.float64).reshape(-1, 2).T
