"""Two-sample Kolmogorov-Smirnov: the largest distance between two empirical distribution functions."""

from __future__ import annotations

import numpy as np

from pipelines.monitoring.columns import Numbers


def statistic(reference: Numbers, current: Numbers) -> float:
    """sup |F - G| over the known values of both; NaN when a side has none."""
    r, c = np.sort(reference[~np.isnan(reference)]), np.sort(current[~np.isnan(current)])
    if r.size == 0 or c.size == 0:
        return float("nan")
    at = np.concatenate([r, c])
    f = np.searchsorted(r, at, side="right") / r.size
    g = np.searchsorted(c, at, side="right") / c.size
    return float(np.abs(f - g).max())


def p_value(statistic: float, reference_rows: int, current_rows: int) -> float:
    """Chance of a distance this large when both come from one distribution (asymptotic; with ties it errs upwards)."""
    if not np.isfinite(statistic):
        return float("nan")
    from scipy.stats import kstwobign

    effective = reference_rows * current_rows / (reference_rows + current_rows)
    return float(kstwobign.sf(statistic * np.sqrt(effective)))
