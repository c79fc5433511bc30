"""Losses: bounded as they say, and least where their theory puts the least."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stats.losses import LOSSES, OF_PROBABILITIES, Loss, loss_range, loss_values

ANY = st.floats(-1e6, 1e6)
LEVELS = st.floats(0.01, 0.99)


@given(st.sampled_from(LOSSES), st.lists(st.tuples(ANY, ANY), min_size=1, max_size=20), LEVELS)
def test_a_loss_stays_within_its_declared_range(kind: Loss, pairs: list[tuple[float, float]], q: float) -> None:
    score, label = (np.array(column) for column in zip(*pairs, strict=True))
    values = loss_values(kind, score, label, clip=0.01, cap=50.0, q=q)
    low, high = loss_range(kind, clip=0.01, cap=50.0)
    assert np.all((low - 1e-12 <= values) & (values <= high + 1e-12))


@pytest.mark.parametrize("kind", OF_PROBABILITIES)
def test_a_probability_loss_is_least_for_the_true_share(kind: Loss) -> None:
    share, scores = 0.3, np.linspace(0.02, 0.98, 97)
    expected = sum(
        weight * loss_values(kind, scores, np.full_like(scores, label), clip=0.01, cap=None)
        for label, weight in ((1.0, share), (0.0, 1.0 - share))
    )
    assert scores[np.argmin(expected)] == pytest.approx(share, abs=0.011)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_the_pinball_loss_is_least_for_the_quantile(q: float) -> None:
    label = np.random.default_rng(7).normal(size=20_001)
    scores = np.linspace(-2.0, 2.0, 401)
    means = [loss_values("pinball", np.full_like(label, s), label, clip=0.01, cap=100.0, q=q).mean() for s in scores]
    assert scores[int(np.argmin(means))] == pytest.approx(np.quantile(label, q), abs=0.011)
