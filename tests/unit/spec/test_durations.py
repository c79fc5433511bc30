"""Durations: text with units and a clock, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.spec.durations import Duration, parse


@given(st.integers(0, 10**15), st.sampled_from(["event_time", "wall"]))
def test_a_duration_reads_back_what_it_prints(us: int, clock: str) -> None:
    duration = Duration(us, clock)
    assert parse(str(duration)) == duration


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("1d6h event_time", 108_000_000_000),
        ("90m event_time", 5_400_000_000),
        ("250ms event_time", 250_000),
        ("0s event_time", 0),
    ],
)
def test_units_add_up(text: str, us: int) -> None:
    assert parse(text) == Duration(us, "event_time")


@pytest.mark.parametrize(
    "text", ["", "1d", "event_time", "1 day event_time", "-1d event_time", "1.5h wall", "1d clock", 5, None]
)
def test_anything_else_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse(text)
