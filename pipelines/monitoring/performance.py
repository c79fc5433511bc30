"""How well the champion answers: one loss a row on matured labels, so that windows can be compared with their noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipelines.contracts.errors import SpecError
from pipelines.monitoring.columns import Numbers

CLIP = 1e-6


def log_loss(score: Numbers, label: Numbers) -> Numbers:
    """-ln of the probability given to what happened; scores are clipped to [1e-6, 1 - 1e-6]."""
    p = np.clip(score, CLIP, 1 - CLIP)
    return np.asarray(-(label * np.log(p) + (1 - label) * np.log1p(-p)))


def squared_error(score: Numbers, label: Numbers) -> Numbers:
    """(score - label) squared: Brier's score for probabilities."""
    return np.asarray((score - label) ** 2)


def absolute_error(score: Numbers, label: Numbers) -> Numbers:
    """|score - label|."""
    return np.asarray(np.abs(score - label))


LOSSES: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "log_loss": log_loss,
    "brier": squared_error,
    "mse": squared_error,
    "rmse": squared_error,
    "mae": absolute_error,
}


def losses(metric: str, score: Numbers, label: Numbers) -> Numbers:
    """The metric's loss of each row. Raises SpecError for a metric that is no mean of losses."""
    if metric not in LOSSES:
        raise SpecError("monitor.performance.metric", got=metric, expected=f"one of {sorted(LOSSES)}")
    return LOSSES[metric](score, label)


def value(metric: str, row_losses: Numbers) -> float:
    """The metric of a window from its rows' losses; NaN without rows."""
    if row_losses.size == 0:
        return float("nan")
    mean = float(row_losses.mean())
    return float(np.sqrt(mean)) if metric == "rmse" else mean


def p_value_worse(reference: Numbers, current: Numbers) -> float:
    """Welch's one-sided test: the chance of a mean loss this much above the reference's when it is not above it."""
    if reference.size < 2 or current.size < 2:
        return float("nan")
    spread = reference.var(ddof=1) / reference.size + current.var(ddof=1) / current.size
    if spread == 0:
        return 0.0 if current.mean() > reference.mean() else 1.0
    from scipy.stats import ttest_ind

    return float(ttest_ind(current, reference, equal_var=False, alternative="greater").pvalue)
