"""Post-processing of a model that names none: calibrate, bound to the output's range, answer the score alone."""

import numpy as np


def apply(raw, inputs, params):  # type: ignore[no-untyped-def]  # bundled as it is: numpy only  # noqa: ARG001
    """`params`: score (its name), low, high, calibration (see pipelines/training/calibration.py)."""
    score = np.asarray(raw, dtype=np.float64)
    calibration = params.get("calibration") or {"kind": "none"}
    if calibration["kind"] == "platt":
        bounded = np.clip(score, 1e-6, 1 - 1e-6)
        logit = calibration["a"] * np.log(bounded / (1 - bounded)) + calibration["b"]
        score = 1 / (1 + np.exp(-np.clip(logit, -35, 35)))
    elif calibration["kind"] == "isotonic":
        score = np.interp(score, calibration["x"], calibration["y"])
    low = -np.inf if params.get("low") is None else params["low"]
    high = np.inf if params.get("high") is None else params["high"]
    return {params["score"]: np.minimum(np.maximum(score, low), high)}
