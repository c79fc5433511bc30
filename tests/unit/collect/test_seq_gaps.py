"""Lost assignments: numbers that are not there when their time is over, in whatever order the others came."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.collect.seq_gaps import SeqGaps
from pipelines.stats.nats import Ints

DEADLINE = 50


def counted(wall: list[int], seq: list[int], cuts: list[int]) -> Ints:
    """What is missing after each row: a row each assignment, cut into batches."""
    gaps = SeqGaps(DEADLINE)
    total = np.zeros(len(wall), dtype=np.int64)
    edges = [0, *sorted({cut % len(wall) for cut in cuts} - {0}), len(wall)]
    mark = np.maximum.accumulate(np.array(wall, dtype=np.int64))
    for low, high in pairwise(edges):
        position = np.arange(low, high)
        found = gaps.take(mark[low:high], low, np.array(seq[low:high]), position, np.zeros(high - low, dtype=np.int64))
        assert found.amount is not None
        np.add.at(total, found.position, found.amount)
    return total.cumsum()


def missing(wall: list[int], seq: list[int]) -> list[int]:
    """The same by its definition."""
    mark, answer = np.maximum.accumulate(wall), []
    base = None
    for row in range(len(wall)):
        over = [n for k, n in enumerate(seq[: row + 1]) if mark[k] + DEADLINE < mark[row]]
        if over and base is None:
            base = min(seq[: row + 1])
        answer.append(0 if base is None else len(set(range(base, max(over) + 1)) - set(seq[: row + 1])))
    return answer


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 120)), min_size=1, max_size=40),
    st.lists(st.integers(0, 200), max_size=6),
    st.sets(st.integers(0, 40), max_size=8),
)
def test_a_number_is_missing_from_the_end_of_its_time_until_it_comes(
    steps: list[tuple[int, int]], cuts: list[int], lost: set[int]
) -> None:
    given_at = np.cumsum([step for step, _ in steps])
    rows = sorted((int(at) + late, n) for n, (at, (_, late)) in enumerate(zip(given_at, steps, strict=True)))
    rows = [row for row in rows if row[1] not in lost] or rows
    wall, seq = [at for at, _ in rows], [n for _, n in rows]
    assert counted(wall, seq, cuts).tolist() == missing(wall, seq)


def test_workers_that_are_a_second_apart_leave_no_gap() -> None:
    rows = sorted((10 * n + (n % 2) * 40, n) for n in range(400))
    assert not counted([at for at, _ in rows], [n for _, n in rows], [7, 90]).any()
