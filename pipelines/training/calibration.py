"""Calibration of scores on rows the model was not fitted on. The result is data: post-processing applies it.

{"kind": "none"}
{"kind": "platt", "a": float, "b": float}             sigmoid(a * logit(raw) + b)
{"kind": "isotonic", "x": [...], "y": [...]}          linear between knots, flat outside
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.contracts.errors import SpecError
from pipelines.training.metrics import Vector

EPSILON = 1e-6
MAX_KNOTS = 64


def calibrate(kind: str, task: str, label: Vector, raw: Vector) -> dict[str, Any]:
    """Calibration parameters of `kind` fitted on these rows. Raises SpecError for a kind the task does not have."""
    if kind == "none":
        return {"kind": "none"}
    if task != "binary":
        raise SpecError("training.calibration", got=f"{kind} for a {task} model", expected="none")
    if kind == "platt":
        a, b = _platt(label, raw)
        return {"kind": "platt", "a": a, "b": b}
    x, y = _isotonic(label, raw)
    return {"kind": "isotonic", "x": x, "y": y}


def _platt(label: Vector, raw: Vector) -> tuple[float, float]:
    """Slope and intercept on the logit scale by Newton's method, with Platt's smoothed targets (1999)."""
    positives = float(label.sum())
    negatives = label.size - positives
    target = np.where(label > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    bounded = np.clip(raw, EPSILON, 1 - EPSILON)
    design = np.column_stack([np.log(bounded / (1 - bounded)), np.ones(raw.size)])
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -35, 35)))
        gradient = design.T @ (probability - target)
        hessian = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights = weights - step
        if float(np.abs(step).max()) < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def _isotonic(label: Vector, raw: Vector) -> tuple[list[float], list[float]]:
    """Knots of the isotonic regression, thinned to at most `MAX_KNOTS` of equal rows."""
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw, label)
    x = np.unique(np.quantile(raw, np.linspace(0, 1, MAX_KNOTS)))
    return [float(v) for v in x], [float(v) for v in fitted.predict(x)]
