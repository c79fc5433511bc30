"""Charts of a rollout: every line has its name, and no name lies on another."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from pipelines.rollout.charts import HEIGHT, Series, evidence_chart


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=9))
def test_names_of_lines_stand_apart_within_the_chart(ends: list[float]) -> None:
    series = [Series(f"metric_{n}", [(0, 0.0), (100, end)], None) for n, end in enumerate(ends)]
    drawn = evidence_chart("evidence", series, [(0, "shadow")])
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)" fill="#\w+" font-size="10.5"', drawn))
    assert len(heights) == len(ends)
    assert heights[0] > 0
    assert heights[-1] < HEIGHT
    assert all(below - above > 10.8 for above, below in itertools.pairwise(heights))
