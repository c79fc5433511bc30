"""Blocks of 60 seconds: bets that arms exchangeable by block cannot win, and that rare slowness does."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stats.capped_counts import capped_count
from pipelines.stats.latency_blocks import COUNT_FRACTIONS, SIGN_FRACTIONS, block_factors

sizes = st.integers(3, 25)
chances = st.floats(0.0, 1.0)


def _one(size: int, events: int, drawn: int, cap: int) -> float:
    return float(capped_count(np.array([size]), np.array([events]), np.array([drawn]), np.array([cap]))[0])


def _binomial(n: int, p: float) -> np.ndarray:
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


@given(sizes, st.data())
def test_a_capped_count_is_the_mean_over_all_ways_to_draw(size: int, data: st.DataObject) -> None:
    events, drawn = data.draw(st.integers(0, size)), data.draw(st.integers(1, size))
    cap = data.draw(st.integers(1, drawn))
    ways = [math.comb(events, k) * math.comb(size - events, drawn - k) for k in range(drawn + 1)]
    mean = sum(way * min(k, cap) for k, way in enumerate(ways)) / math.comb(size, drawn)
    assert math.isclose(_one(size, events, drawn, cap), mean, abs_tol=1e-9)


@given(sizes, sizes, st.lists(st.tuples(chances, chances), min_size=1, max_size=3), st.sampled_from([0.5, 0.9, 0.99]))
def test_the_bets_on_counts_are_fair_when_noise_of_any_shape_strikes_either_arm_alike(
    n0: int, n1: int, noise: list[tuple[float, float]], q: float
) -> None:
    """The arms' own rates of a block are a pair of the list, either way round with equal chance: nothing symmetric."""
    mean = np.zeros(len(COUNT_FRACTIONS))
    grid = np.stack(np.meshgrid(np.arange(n0 + 1), np.arange(n1 + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    counts = np.column_stack([np.full(len(grid), n0), grid[:, 0], np.full(len(grid), n1), grid[:, 1]])
    factors = np.exp(block_factors(counts, np.zeros(len(grid)), q))[:, len(SIGN_FRACTIONS) :]
    for pair in noise:
        for p0, p1 in (pair, pair[::-1]):
            mean += np.outer(_binomial(n0, p0), _binomial(n1, p1)).reshape(-1) @ factors / (2 * len(noise))
    assert np.allclose(mean, 1.0, atol=1e-9)


def test_a_block_without_anything_beyond_the_quantile_costs_little_and_one_exceedance_pays() -> None:
    quiet, told = block_factors(np.array([[114, 1, 6, 0], [114, 1, 6, 1]]), np.zeros(2), 0.99)[:, -1]
    assert -0.06 < quiet < 0.0
    assert told > 0.6
