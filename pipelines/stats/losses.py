"""Losses of one scored request, bounded: log loss by clipping the score, the others by a declared cap."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pipelines.stats.nats import Floats

Loss = Literal["log", "squared", "absolute"]


def loss_values(kind: Loss, score: Floats, label: Floats, *, clip: float, cap: float | None) -> Floats:
    """(n,) losses. Log loss takes labels in [0, 1] and scores clipped to [clip, 1 - clip]; others end at `cap`."""
    if kind == "log":
        p = np.clip(score, clip, 1.0 - clip)
        y = np.clip(label, 0.0, 1.0)
        values: Floats = -(y * np.log(p) + (1.0 - y) * np.log1p(-p))
        return values
    gap = np.abs(score - label)
    capped: Floats = np.minimum(gap * gap if kind == "squared" else gap, np.inf if cap is None else cap)
    return capped


def loss_range(kind: Loss, *, clip: float, cap: float | None) -> tuple[float, float]:
    """The least and the greatest value `loss_values` can take."""
    if kind == "log":
        return float(-np.log1p(-clip)), float(-np.log(clip))
    return 0.0, float("inf") if cap is None else cap
