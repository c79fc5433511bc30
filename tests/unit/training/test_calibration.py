"""Calibration undoes a distortion; post-processing applies exactly what was fitted."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.contracts.errors import SpecError
from pipelines.training.calibration import calibrate
from pipelines.training.metrics import expected_calibration_error
from pipelines.training.plain_postprocess import apply


def _distorted(rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.05, 0.9, rows)
    label = (rng.random(rows) < truth).astype(float)
    logit = np.log(truth / (1 - truth))
    return label, 1 / (1 + np.exp(-(2.0 * logit + 0.7)))


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_a_distorted_score_becomes_calibrated(kind: str) -> None:
    label, raw = _distorted()
    found = calibrate(kind, "binary", label[:10_000], raw[:10_000])
    params = {"score": "p", "low": 0.0, "high": 1.0, "calibration": found}
    score = apply(raw[10_000:], {}, params)["p"]
    assert expected_calibration_error(label[10_000:], raw[10_000:]) > 0.08
    assert expected_calibration_error(label[10_000:], score) < 0.02


def test_platt_finds_slope_and_intercept() -> None:
    label, raw = _distorted(200_000)
    found = calibrate("platt", "binary", label, raw)
    assert found["a"] == pytest.approx(0.5, abs=0.02)
    assert found["b"] == pytest.approx(-0.35, abs=0.03)


def test_isotonic_never_turns_the_order_around() -> None:
    label, raw = _distorted(3_000)
    found = calibrate("isotonic", "binary", label, raw)
    assert (np.diff(found["y"]) >= 0).all()


def test_no_calibration_leaves_the_score_inside_its_range() -> None:
    params = {
        "score": "minutes",
        "low": 0.0,
        "high": 100.0,
        "calibration": calibrate("none", "regression", *_distorted()),
    }
    assert apply(np.array([-5.0, 50.0, 500.0]), {}, params)["minutes"].tolist() == [0.0, 50.0, 100.0]


def test_a_regression_cannot_be_calibrated_like_a_probability() -> None:
    with pytest.raises(SpecError, match="expected none"):
        calibrate("platt", "regression", np.zeros(3), np.zeros(3))
