"""Losses of one scored request, bounded: those of probabilities by clipping the score, the others by a declared cap."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from pipelines.stats.nats import Floats

Loss = Literal["log", "brier", "squared", "absolute", "pinball"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
RANK: Literal["rank"] = "rank"
"""The loss of a pair of requests, a positive and a negative: `pipelines.collect.rank_pairs`."""
OF_PROBABILITIES: tuple[Loss, ...] = ("log", "brier")
"""Losses of scores and labels in [0, 1]; they need no cap."""


def loss_values(
    kind: Loss, score: Floats, label: Floats, *, clip: float, cap: float | None, q: float | None = None
) -> Floats:
    """(n,) losses.

    `log` (nats) takes scores clipped to [clip, 1 - clip], `brier` the squared gap of a score in [0, 1] (Brier 1950);
    both take labels in [0, 1]. `squared`, `absolute` and `pinball` end at `cap`, in the label's unit or its square.
    `pinball` at level `q` is `q (label - score)` below the label and `(1 - q) (score - label)` above it (Koenker and
    Bassett 1978), so its mean is least for the label's q-quantile.
    """
    if kind in OF_PROBABILITIES:
        y = np.clip(label, 0.0, 1.0)
        if kind == "brier":
            return np.asarray((np.clip(score, 0.0, 1.0) - y) ** 2)
        p = np.clip(score, clip, 1.0 - clip)
        return np.asarray(-(y * np.log(p) + (1.0 - y) * np.log1p(-p)))
    gap = label - score
    if kind == "pinball":
        assert q is not None  # the policy has asked for it
        values = np.where(gap >= 0.0, q * gap, (q - 1.0) * gap)
    else:
        values = gap * gap if kind == "squared" else np.abs(gap)
    return np.asarray(np.minimum(values, np.inf if cap is None else cap))


def loss_range(kind: Loss | Literal["rank"], *, clip: float, cap: float | None) -> tuple[float, float]:
    """The least and the greatest value one loss can take."""
    if kind == "log":
        return float(-np.log1p(-clip)), float(-np.log(clip))
    if kind in ("brier", RANK):
        return 0.0, 1.0
    return 0.0, float("inf") if cap is None else cap
