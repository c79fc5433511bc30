"""Kolmogorov-Smirnov, chi-squared and Welch, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipelines.monitoring import buckets, chi_squared, ks, performance

SAMPLE = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60).map(np.asarray)


@given(SAMPLE, SAMPLE)
@settings(max_examples=100, deadline=None)
def test_the_distance_is_the_largest_between_the_distribution_functions_also_with_ties(reference, current):
    at = np.concatenate([reference, current])
    expected = max(abs(np.mean(reference <= value) - np.mean(current <= value)) for value in at)
    assert ks.statistic(reference, current) == pytest.approx(expected)


def test_the_p_value_is_the_asymptotic_one():
    rng = np.random.default_rng(4)
    reference, current = rng.normal(size=3000), rng.normal(0.05, 1, size=2000)
    expected = stats.kstwobign.sf(ks.statistic(reference, current) * np.sqrt(3000 * 2000 / 5000))
    assert ks.p_value(ks.statistic(reference, current), 3000, 2000) == pytest.approx(expected)
    assert ks.p_value(ks.statistic(reference, current), 3000, 2000) == pytest.approx(
        stats.ks_2samp(reference, current, method="asymp").pvalue, rel=0.1
    )


def test_a_side_without_known_values_has_no_distance():
    assert np.isnan(ks.statistic(np.array([np.nan]), np.array([1.0])))
    assert np.isnan(ks.p_value(float("nan"), 0, 1))


def test_chi_squared_of_a_contingency_table_is_scipys():
    reference, current = ["a"] * 60 + ["b"] * 40, ["a"] * 90 + ["b"] * 110
    expected = stats.chi2_contingency([[60, 40], [90, 110]], correction=False)
    found = chi_squared.test(reference, current)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.degrees == 1


def test_rare_values_are_taken_together():
    common = ["a"] * 500 + ["b"] * 500
    found = chi_squared.test([*common, "x", "y", "z"], [*common, "u", "v", "w"])
    assert found.degrees <= 2
    assert found.p_value > 0.5


def test_one_value_or_an_empty_side_cannot_differ():
    assert chi_squared.test(["a"] * 100, ["a"] * 50).p_value == 1.0
    assert chi_squared.test([], ["a"] * 50).p_value == 1.0


def test_p_values_are_uniform_when_nothing_has_changed():
    rng = np.random.default_rng(5)
    rejected = {"ks": 0, "chi_squared": 0}
    for _ in range(400):
        one, two = rng.integers(0, 8, 600), rng.integers(0, 8, 300)
        rejected["chi_squared"] += chi_squared.test([str(v) for v in one], [str(v) for v in two]).p_value < 0.05
        x, y = rng.normal(size=600), rng.normal(size=300)
        rejected["ks"] += ks.p_value(ks.statistic(x, y), 600, 300) < 0.05
    assert 8 <= rejected["chi_squared"] <= 34
    assert 8 <= rejected["ks"] <= 34


def test_many_values_become_the_frequent_ones_and_a_rest():
    reference = [f"N{i % 300}" for i in range(3000)]
    current = [f"N{1000 + i % 300}" for i in range(1500)]
    one, two = buckets.frequent(reference, [*current, None])
    assert len(set(one)) == 21
    assert set(two) == {"(other)", None}


def test_worse_is_one_sided_and_welchs():
    rng = np.random.default_rng(6)
    reference, current = rng.exponential(1.0, 4000), rng.exponential(1.2, 900)
    expected = stats.ttest_ind(current, reference, equal_var=False, alternative="greater").pvalue
    assert performance.p_value_worse(reference, current) == pytest.approx(expected)
    assert performance.p_value_worse(current, reference) > 0.99
    assert performance.p_value_worse(np.ones(9), np.ones(9) * 2) == 0.0


def test_losses_by_hand():
    score, label = np.array([0.8, 0.2]), np.array([1.0, 1.0])
    assert performance.losses("log_loss", score, label) == pytest.approx([-np.log(0.8), -np.log(0.2)])
    assert performance.value("brier", performance.losses("brier", score, label)) == pytest.approx((0.04 + 0.64) / 2)
    assert performance.value("rmse", performance.losses("rmse", score, label)) == pytest.approx(np.sqrt(0.34))
    assert performance.value("mae", performance.losses("mae", score, label)) == pytest.approx(0.5)
