"""Post-processing of `late_arrival`: the calibrated score, and whether to warn. Numpy only."""

import numpy as np


def apply(raw, inputs, params):  # noqa: ARG001 - the signature is fixed
    """`score` in [0, 1]; `decision`: warn when the score reaches `params["threshold"]`."""
    score = calibrated(np.asarray(raw, dtype=np.float64), params.get("calibration"))
    return {"score": score, "decision": score >= params["threshold"]}


def calibrated(raw, calibration):
    """Scores by Platt's sigmoid, where calibration parameters are given."""
    if not calibration or calibration["kind"] == "none":
        return np.clip(raw, 0.0, 1.0)
    bounded = np.clip(raw, 1e-6, 1 - 1e-6)
    logit = calibration["a"] * np.log(bounded / (1 - bounded)) + calibration["b"]
    return 1 / (1 + np.exp(-np.clip(logit, -35, 35)))
