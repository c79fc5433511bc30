"""The split keeps the order of time, its gaps, and what could be known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.errors import DataError
from pipelines.training.split import split

HOUR = 3_600_000_000


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 60)), min_size=60, max_size=200),
    st.integers(5, 40),
    st.integers(5, 40),
    st.integers(0, 30),
)
def test_parts_never_overlap_and_keep_their_gaps(
    rows: list[tuple[int, int]], validation: int, test: int, gap: int
) -> None:
    event = np.array([at for at, _ in rows]) * HOUR
    label = event + np.array([delay for _, delay in rows]) * HOUR
    try:
        parts = split(event, label, validation_us=validation * HOUR, test_us=test * HOUR, gap_us=gap * HOUR)
    except DataError:
        return  # some part had no rows: another test's business
    assert not (parts.fit & parts.validation).any()
    assert not (parts.validation & parts.test).any()
    test_from, validation_from = event.max() - test * HOUR, event.max() - (test + gap + validation) * HOUR
    assert event[parts.validation].max() <= test_from - gap * HOUR
    assert event[parts.fit].max() <= validation_from - gap * HOUR
    assert label[parts.fit].max() <= validation_from
    assert label[parts.validation].max() <= test_from


def test_a_label_that_came_after_the_next_part_began_is_not_learnt_from() -> None:
    event = np.arange(100) * HOUR
    label = event.copy()
    label[10] = 95 * HOUR
    parts = split(event, label, validation_us=20 * HOUR, test_us=20 * HOUR, gap_us=2 * HOUR)
    assert parts.fit[9]
    assert not parts.fit[10]


def test_too_short_a_history_says_which_part_is_empty() -> None:
    event = np.arange(10) * HOUR
    with pytest.raises(DataError, match="'fit': 0"):
        split(event, event, validation_us=20 * HOUR, test_us=5 * HOUR, gap_us=0)
