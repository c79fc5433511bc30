"""Offline metrics of scores against labels. Which way is better is said here and nowhere else.

Log loss is bounded by clipping scores to [0.01, 0.99], as the gates bound it: offline and live numbers compare.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

CLIP = 0.01
ECE_BINS = 15
HIGHER_IS_BETTER = frozenset({"auc", "r2"})
OBJECTIVE = {"binary": "log_loss", "regression": "rmse"}


def losses(task: str, label: Vector, score: Vector) -> Vector:
    """The loss of each row: clipped log loss (nats) for `binary`, squared error for `regression`."""
    if task == "binary":
        bounded = np.clip(score, CLIP, 1 - CLIP)
        result: Vector = -(label * np.log(bounded) + (1 - label) * np.log1p(-bounded))
        return result
    return np.asarray((score - label) ** 2, dtype=np.float64)


def measure(task: str, label: Vector, score: Vector) -> dict[str, float]:
    """Every metric of the task over these rows. `auc` is left out where only one class is present."""
    if task == "binary":
        found = {
            "log_loss": float(losses(task, label, score).mean()),
            "brier": float(np.mean((score - label) ** 2)),
            "ece": expected_calibration_error(label, score),
            "base_rate": float(label.mean()),
            "mean_score": float(score.mean()),
        }
        if (area := auc(label, score)) is not None:
            found["auc"] = area
        return found
    error = score - label
    spread = float(np.mean((label - label.mean()) ** 2))
    found = {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "mean_label": float(label.mean()),
        "mean_score": float(score.mean()),
    }
    if spread > 0:
        found["r2"] = 1 - float(np.mean(error**2)) / spread
    return found


def measure_slices(
    task: str, label: Vector, score: Vector, slices: Mapping[str, npt.NDArray[np.object_]], min_rows: int = 50
) -> dict[str, dict[str, dict[str, float]]]:
    """{slice input: {value: {metric: number, rows: n}}}; a value with fewer than `min_rows` rows is left out."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in slices.items():
        texts = np.array(["(missing)" if value is None else str(value) for value in values])
        by_value = {}
        for value in np.unique(texts):
            rows = texts == value
            if rows.sum() >= min_rows:
                by_value[str(value)] = {"rows": float(rows.sum()), **measure(task, label[rows], score[rows])}
        found[name] = by_value
    return found


def auc(label: Vector, score: Vector) -> float | None:
    """Area under the ROC curve, ties counted half; None when a class is missing."""
    positives = int((label > 0.5).sum())
    negatives = label.size - positives
    if not positives or not negatives:
        return None
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    rank = (last - (count - 1) / 2)[place]
    return float((rank[label > 0.5].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(label: Vector, score: Vector, bins: int = ECE_BINS) -> float:
    """Mean distance of mean score and label share over `bins` equal-width bins, weighted by rows."""
    place = np.clip((score * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    gap = np.bincount(place, weights=score, minlength=bins) - np.bincount(place, weights=label, minlength=bins)
    filled = count > 0
    return float(np.abs(gap[filled]).sum() / label.size)


def calibration_curve(label: Vector, score: Vector, bins: int = ECE_BINS) -> tuple[Vector, Vector, Vector]:
    """(mean score, label share, rows) of each filled equal-width bin."""
    place = np.clip((score * bins).astype(int), 0, bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    filled = count > 0
    mean = np.bincount(place, weights=score, minlength=bins)[filled] / count[filled]
    share = np.bincount(place, weights=label, minlength=bins)[filled] / count[filled]
    return mean, share, count[filled]
