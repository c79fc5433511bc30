"""Post-processing of `late_arrival` with risk bands: score, band, and whether to warn. Numpy only."""

import numpy as np


def apply(raw, inputs, params):  # noqa: ARG001 - the signature is fixed
    """`score` in [0, 1]; `band`: how many of `params["bands"]` the score reaches; `decision`: warn from
    `params["warn_from"]` on, a band.
    """
    score = calibrated(np.asarray(raw, dtype=np.float64), params.get("calibration"))
    band = np.searchsorted(np.asarray(params["bands"]), score, side="right")
    return {"score": score, "decision": band >= params["warn_from"], "band": band.astype(np.int64)}


def calibrated(raw, calibration):
    """Scores by Platt's sigmoid, where calibration parameters are given."""
    if not calibration or calibration["kind"] == "none":
        return np.clip(raw, 0.0, 1.0)
    bounded = np.clip(raw, 1e-6, 1 - 1e-6)
    logit = calibration["a"] * np.log(bounded / (1 - bounded)) + calibration["b"]
    return 1 / (1 + np.exp(-np.clip(logit, -35, 35)))
