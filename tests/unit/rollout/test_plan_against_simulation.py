"""The planner against rollouts that are played out: within a factor two of the median, for every kind of metric."""

from __future__ import annotations

import pytest

from benchmarks.proof.plans import CASES, FACTOR, PlanJob, median, planned, play

RUNS = 11


@pytest.mark.parametrize("name", CASES)
def test_a_plan_is_within_a_factor_two_of_the_median(name: str) -> None:
    rows = [play(PlanJob(key=f"{name}:{seed}", case=name, seed=seed)) for seed in range(RUNS)]
    assert 1.0 / FACTOR <= planned(name) / median(rows) <= FACTOR, (planned(name), median(rows))
