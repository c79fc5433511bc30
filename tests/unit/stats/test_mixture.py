"""Mixtures keep what makes an e-value: mean at most one, and late faults stay visible."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.stats.bounds import interval
from pipelines.stats.mixture import e_value, log_mean_exp, over_slices, over_time


def test_no_evidence_is_an_e_value_of_one() -> None:
    assert over_time(np.zeros((3, 8)), sticky=False) == pytest.approx(0.0)
    assert over_slices(np.array(0.0), np.zeros(4), 8) == pytest.approx(0.0)


def test_a_fault_that_begins_in_the_last_stage_is_not_hidden_by_a_good_past() -> None:
    log_factors = np.array([[-200.0] * 8, [-200.0] * 8, [30.0] * 8])
    assert over_time(log_factors, sticky=False) == pytest.approx(30.0 - np.log(2) - np.log(3))


def test_sticky_units_use_each_stage_alone_at_its_share_of_the_level() -> None:
    log_factors = np.array([[10.0, 0.0] * 4, [12.0, 0.0] * 4])
    assert over_time(log_factors, sticky=True) == pytest.approx(12.0 - np.log(2) - np.log(2))


def test_sticky_units_met_for_the_first_time_add_up_over_stages() -> None:
    log_factors = np.array([[0.0, 10.0] * 4, [0.0, 12.0] * 4])
    assert over_time(log_factors, sticky=True) == pytest.approx(22.0 - np.log(2))


@pytest.mark.parametrize("sticky", [False, True])
def test_a_stage_of_more_weight_is_heard_sooner_and_weights_alike_change_nothing(sticky: bool) -> None:
    late = np.array([[-200.0] * 8, [30.0, 0.0] * 4])
    heavy, light = (over_time(late, sticky=sticky, weights=np.array([1.0 - w, w])) for w in (0.9, 0.1))
    assert heavy - light == pytest.approx(np.log(9.0))
    even = over_time(late, sticky=sticky, weights=np.array([0.5, 0.5]))
    assert even == pytest.approx(float(over_time(late, sticky=sticky)))


def test_one_loud_slice_costs_its_share_of_the_family() -> None:
    family = over_slices(np.array(0.0), np.array([40.0, 0.0, 0.0]), 8)
    assert family == pytest.approx(40.0 - np.log(8) - np.log(2))


def test_a_single_slice_is_all_traffic() -> None:
    assert over_slices(np.array(3.0), np.array([3.0]), 8) == 3.0


def test_mixtures_over_time_and_slices_have_mean_at_most_one() -> None:
    """50,000 rollouts of 3 stages, 4 slices and 8 log-normal martingale bets: within 5 standard errors of one."""
    rng = np.random.default_rng(3)
    scale = np.linspace(0.05, 0.6, 8)
    steps = rng.normal(0.0, 1.0, (50_000, 4, 3, 1)) * scale - 0.5 * scale**2
    whole = over_time(steps.sum(axis=1), sticky=False)
    e_values = np.exp(over_slices(whole, over_time(steps, sticky=False), 8))
    assert e_values.mean() <= 1 + 5 * e_values.std() / np.sqrt(len(e_values))


def test_log_mean_exp_survives_large_values() -> None:
    assert log_mean_exp(np.array([1e6, 1e6]), axis=-1) == pytest.approx(1e6)
    assert e_value(1e6) == pytest.approx(np.exp(690.0))


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_interval_holds_at_every_look_at_once(mean: float) -> None:
    """400 runs of 2,000 bounded observations, looked at 40 times: at most 5 % ever leave the interval (bound 10 %)."""
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(400):
        x = np.clip(mean + rng.normal(0.0, 0.4, 2000), -1.0, 1.0)
        true = np.clip(mean + rng.normal(0.0, 0.4, 2_000_00), -1.0, 1.0).mean() if mean else 0.0
        sums, squares = np.cumsum(x), np.cumsum(x * x)
        for n in range(50, 2001, 50):
            lower, upper = interval(n, sums[n - 1], squares[n - 1], 1.0, 1.0, 0.05)
            if not lower <= true <= upper:
                missed += 1
                break
    assert missed <= 0.1 * 400


def test_the_interval_narrows_to_a_useful_width() -> None:
    n, sd = 3000, 0.27
    lower, upper = interval(n, 0.0, n * sd**2, 4.6, 4.6, 0.05)
    assert upper - lower < 0.055
