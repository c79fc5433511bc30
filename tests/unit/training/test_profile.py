"""The reference profile counts every row once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.training.profile import BINS, categorical, numeric


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=300))
def test_each_value_is_in_one_bin_or_missing(values: list[float]) -> None:
    found = numeric(np.array(values))
    assert sum(found["counts"]) + found["missing"] == len(values)
    assert len(found["edges"]) <= BINS - 1
    assert found["edges"] == sorted(set(found["edges"]))


def test_bins_of_a_spread_feature_hold_equal_rows() -> None:
    found = numeric(np.random.default_rng(0).normal(size=10_000))
    assert all(abs(count - 1_000) <= 1 for count in found["counts"])


def test_rare_texts_are_counted_together() -> None:
    values = np.array([f"v{i}" for i in range(60)] + ["often"] * 10 + [None], dtype=object)
    found = categorical(values)
    assert found["counts"]["often"] == 10
    assert found["other"] == 11
    assert found["missing"] == 1
