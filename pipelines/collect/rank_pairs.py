"""Pairs of a positive and a negative request, for the rank loss: one minus the area under the ROC curve.

The area is the chance that a positive scores above a negative (Hanley and McNeil 1982). Each request is in at most one
pair, with the nearest one before it whose label differs and that has none yet: pairs are disjoint and known in order,
so a bet on their losses is one on a bounded mean like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.collect.request_columns import Requests, take
from pipelines.stats.nats import Floats, Ints


class Ranked(NamedTuple):
    """Pairs as the rows of the request that completed each, with both arms' losses: 0 ranked well, 0.5 tied, 1 ill."""

    rows: Requests
    position: Ints
    one: Floats
    zero: Floats


_COLUMNS = ("label", "score", "stage", "parts")


class RankPairs:
    """Remembers the last labelled request that has no partner yet."""

    def __init__(self) -> None:
        self._waiting: Requests | None = None

    def complete(self, rows: Requests, at: Ints) -> Ranked:
        """The pairs that further labelled requests, in order of position, complete."""
        held = 0 if self._waiting is None else 1
        rows = {name: rows[name] for name in _COLUMNS}
        if self._waiting is not None:
            rows = {name: np.concatenate([self._waiting[name], rows[name]]) for name in _COLUMNS}
            at = np.concatenate([[-1], at])
        positive = rows["label"] > 0.5
        before: list[int] = []
        after: list[int] = []
        waiting = 0 if held else -1
        for index, label in enumerate(positive.tolist()[held:], start=held):
            if waiting >= 0 and bool(positive[waiting]) != label:
                before.append(waiting)
                after.append(index)
                waiting = -1
            else:
                waiting = index
        self._waiting = {name: rows[name][[waiting]] for name in _COLUMNS} if waiting >= 0 else None
        first, second = np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)
        up = np.where(positive[second], second, first)
        down = np.where(positive[second], first, second)
        one, zero = (0.5 - 0.5 * np.sign(rows["score"][up, arm] - rows["score"][down, arm]) for arm in (1, 0))
        pairs = take(rows, second)
        # A pair tells of a slice when both of its requests lie in it.
        pairs["parts"] = np.where(rows["parts"][first] == pairs["parts"], pairs["parts"], -1)
        return Ranked(pairs, at[second], one, zero)


def pairs_per_request(positives: float) -> float:
    """How many pairs one labelled request completes, when a share `positives` of independent labels is positive."""
    product = positives * (1.0 - positives)
    return product / (1.0 - product)
