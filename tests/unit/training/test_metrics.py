"""Metrics agree with scikit-learn and with their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, r2_score, roc_auc_score

from pipelines.training.metrics import auc, expected_calibration_error, losses, measure, measure_slices

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.floats(0.0, 1.0)), min_size=4, max_size=80)


@given(PAIRS)
def test_auc_is_scikit_learns_ties_included(pairs: list[tuple[int, float]]) -> None:
    label = np.array([float(y) for y, _ in pairs])
    score = np.array([round(p, 1) for _, p in pairs])
    if len(set(label)) < 2:
        assert auc(label, score) is None
    else:
        assert auc(label, score) == pytest.approx(roc_auc_score(label, score))


def test_binary_metrics_are_scikit_learns_within_the_clip() -> None:
    rng = np.random.default_rng(1)
    score = rng.uniform(0.02, 0.98, 500)
    label = (rng.random(500) < score).astype(float)
    found = measure("binary", label, score)
    assert found["log_loss"] == pytest.approx(log_loss(label, score))
    assert found["brier"] == pytest.approx(brier_score_loss(label, score))


def test_log_loss_is_bounded_where_a_sure_score_is_wrong() -> None:
    assert losses("binary", np.array([1.0]), np.array([0.0]))[0] == pytest.approx(-np.log(0.01))


def test_regression_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    label = rng.normal(100, 20, 300)
    score = label + rng.normal(1, 5, 300)
    found = measure("regression", label, score)
    assert found["r2"] == pytest.approx(r2_score(label, score))
    assert found["bias"] == pytest.approx(float(np.mean(score - label)))
    assert found["rmse"] ** 2 == pytest.approx(float(losses("regression", label, score).mean()))


def test_calibration_error_is_the_distance_of_score_and_share() -> None:
    label = np.array([1.0] * 30 + [0.0] * 70)
    assert expected_calibration_error(label, np.full(100, 0.3)) == pytest.approx(0.0, abs=1e-12)
    assert expected_calibration_error(label, np.full(100, 0.5)) == pytest.approx(0.2)


def test_small_slices_are_left_out_and_missing_values_are_a_slice() -> None:
    label, score = np.tile([0.0, 1.0], 60), np.full(120, 0.4)
    values = np.array(["JFK"] * 60 + [None] * 50 + ["LGA"] * 10, dtype=object)
    found = measure_slices("binary", label, score, {"origin": values})
    assert set(found["origin"]) == {"JFK", "(missing)"}
    assert found["origin"]["JFK"]["rows"] == 60
