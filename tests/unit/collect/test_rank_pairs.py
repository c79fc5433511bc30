"""Pairs for the rank loss: disjoint, of unlike labels, and the same however the log is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.collect.rank_pairs import RankPairs, pairs_per_request
from pipelines.collect.request_columns import Requests, empty

LABELS = st.lists(st.booleans(), min_size=0, max_size=60)


def labelled(labels: list[bool], seed: int = 0) -> Requests:
    rng = np.random.default_rng(seed)
    rows = empty(len(labels), slices=1)
    rows["label"] = np.array(labels, dtype=np.float64)
    rows["score"] = rng.random((len(labels), 2))
    rows["parts"] = rng.integers(0, 3, (len(labels), 1))
    return rows


def part(rows: Requests, begin: int, end: int) -> Requests:
    return {name: values[begin:end] for name, values in rows.items()}


@given(LABELS, st.lists(st.integers(0, 60), max_size=5))
@settings(deadline=None)
def test_pairs_do_not_depend_on_how_the_log_is_cut(labels: list[bool], cuts: list[int]) -> None:
    rows, at = labelled(labels), np.arange(len(labels), dtype=np.int64)
    whole = RankPairs().complete(rows, at)
    pairs = RankPairs()
    edges = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    found = [pairs.complete(part(rows, a, b), at[a:b]) for a, b in itertools.pairwise(edges)]
    for name in ("position", "one", "zero"):
        assert np.array_equal(np.concatenate([getattr(some, name) for some in found]), getattr(whole, name))
    assert np.array_equal(np.concatenate([some.rows["parts"] for some in found]), whole.rows["parts"])


def test_a_positive_above_its_negative_loses_nothing_and_a_tie_half() -> None:
    rows = labelled([True, False, False, True, False])
    rows["score"] = np.array([[0.9, 0.2], [0.1, 0.2], [0.7, 0.1], [0.3, 0.6], [0.5, 0.5]])
    found = RankPairs().complete(rows, np.arange(5, dtype=np.int64))
    assert found.position.tolist() == [1, 3]
    assert found.zero.tolist() == [0.0, 1.0]
    assert found.one.tolist() == [0.5, 0.0]


def test_a_pair_across_slices_belongs_to_none_of_them() -> None:
    rows = labelled([True, False])
    rows["parts"] = np.array([[0], [1]])
    assert RankPairs().complete(rows, np.arange(2, dtype=np.int64)).rows["parts"].tolist() == [[-1]]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_number_of_pairs_is_the_one_the_planner_counts_on(share: float) -> None:
    labels = (np.random.default_rng(3).random(40_000) < share).tolist()
    found = RankPairs().complete(labelled(labels), np.arange(40_000, dtype=np.int64))
    assert len(found.position) / 40_000 == pytest.approx(pairs_per_request(share), rel=0.05)
