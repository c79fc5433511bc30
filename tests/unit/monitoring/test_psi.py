"""The population stability index against its definition and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.monitoring import psi

COUNTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=12)


def test_two_bins_by_hand():
    # (0.5 more in each bin) shares 3/8, 5/8 against 5/8, 3/8: twice 1/4 * ln(5/3)
    assert psi.of_counts([2.5, 4.5], [4.5, 2.5]) == pytest.approx(2 * 0.25 * math.log(5 / 3))


def test_equal_samples_have_no_index():
    values = np.random.default_rng(1).normal(size=4000)
    assert psi.of_numbers(values, values.copy()) == 0.0


@given(COUNTS, st.randoms(use_true_random=False))
def test_the_index_is_never_negative_and_does_not_care_which_side_is_which(reference, random):
    current = random.sample(reference, len(reference))
    there, back = psi.of_counts(reference, current), psi.of_counts(current, reference)
    assert there >= 0
    assert there == pytest.approx(back)


def test_ten_quantile_bins_of_a_shifted_normal_are_near_the_integral():
    # For N(0,1) and N(d,1) the symmetrised divergence is d^2; ten bins lose a little of it.
    rng = np.random.default_rng(2)
    found = psi.of_numbers(rng.normal(size=200_000), rng.normal(0.5, 1, size=200_000))
    assert 0.21 < found < 0.25


def test_missing_values_are_a_bin_of_their_own():
    values = np.random.default_rng(3).normal(size=2000)
    holes = values.copy()
    holes[:1000] = np.nan
    assert psi.of_numbers(values, holes) > 1.0
    assert psi.of_numbers(holes, holes) == 0.0


def test_a_column_of_few_values_gets_a_bin_for_each():
    reference, current = np.repeat([1.0, 2.0, 3.0], 100), np.repeat([1.0, 2.0, 3.0], [50, 50, 200])
    assert psi.quantile_edges(reference).tolist() == [1.5, 2.5]
    assert psi.of_numbers(reference, current) == pytest.approx(psi.of_counts([100, 100, 100, 0], [50, 50, 200, 0]))


def test_a_value_that_only_one_side_has_gives_a_large_finite_index():
    found = psi.of_categories(["a"] * 500, ["b"] * 500)
    assert 5 < found < 20
