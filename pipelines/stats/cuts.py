"""The champion's running latency quantiles, frozen per block so that a bet on the next latency is predictable."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from pipelines.stats.nats import Floats

BLOCK = 500
WINDOW = 8
"""Blocks looked back on: 4,000 latencies of the champion."""


def quantiles(values: Floats, qs: Sequence[float]) -> Floats:
    """(q,) quantiles of at least one value, to the bit those of `np.quantile`, which takes twice the time."""
    place = np.asarray(qs) * (len(values) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, len(values) - 1)
    ordered = np.partition(values, np.unique(np.concatenate([low, high])))
    part, step = place - low, ordered[high] - ordered[low]
    # Measured from the nearer neighbour, as numpy does.
    between: Floats = np.where(part >= 0.5, ordered[high] - step * (1.0 - part), ordered[low] + step * part)
    return between


class RunningCuts:
    """Quantiles `qs` of the champion's last 8 whole blocks of 500 latencies, in order of position."""

    def __init__(self, qs: Sequence[float]) -> None:
        self._qs = list(qs)
        self._block: list[Floats] = []
        self._held = 0
        self._past: deque[Floats] = deque(maxlen=WINDOW)
        self._cut = np.full(len(self._qs), np.nan)

    def take(self, champion: Floats) -> Floats:
        """(n, q) cuts for n further observations in order; `champion` (n,) holds its latency or NaN where it has none.

        NaN before the first block is over.
        """
        n = len(champion)
        cuts = np.empty((n, len(self._qs)))
        if not self._qs:
            return cuts
        present = np.flatnonzero(~np.isnan(champion))
        begin = 0
        taken = 0
        while begin < n:
            room = BLOCK - self._held
            chunk = present[taken : taken + room]
            full = len(chunk) == room
            # The block's last latency is judged by the old cut; the new one holds from the next observation on.
            end = int(chunk[-1]) + 1 if full else n
            cuts[begin:end] = self._cut
            self._block.append(champion[chunk])
            self._held += len(chunk)
            taken += len(chunk)
            if full:
                self._past.append(np.concatenate(self._block))
                self._block, self._held = [], 0
                self._cut = quantiles(np.concatenate(self._past), self._qs)
            begin = end
        return cuts
