"""The running centre of a bounded mean: what the KPI was expected to be, frozen per block so that it is predictable."""

from __future__ import annotations

import numpy as np

from pipelines.stats.nats import MOMENT, Floats, Ints

BLOCK = 500
RATE_BLOCK = 100
"""Shorter, so that an outage is noticed while it lasts."""


class RunningRate:
    """The champion's event rate over its last whole block of 100 answers, in order of position; 0 before the first."""

    def __init__(self) -> None:
        self._seen = 0
        self._events = 0
        self._frozen = 0.0

    def take(
        self, events: np.ndarray[tuple[int], np.dtype[np.bool_]], champion: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> Floats:
        """(n,) rates for n further answers in order; `events` are looked at where `champion` is true."""
        place = np.flatnonzero(champion)
        cumulated = self._events + np.cumsum(events[place])
        ends = np.arange(RATE_BLOCK - 1 - self._seen % RATE_BLOCK, len(place), RATE_BLOCK)
        taken = cumulated[ends]
        frozen = np.concatenate([[self._frozen], np.diff(taken, prepend=0) / RATE_BLOCK])
        # A rate holds from the answer after the block's last one on.
        rates: Floats = np.repeat(frozen, np.diff(np.concatenate([[0], place[ends] + 1, [len(events)]])))
        self._frozen = float(frozen[-1])
        self._seen += len(place)
        self._events = (int(cumulated[-1]) if len(place) else self._events) - (int(taken[-1]) if len(taken) else 0)
        return rates


class RunningCentre:
    """The champion's mean over all earlier blocks of 500 settled observations, in order of settling.

    Centring takes the level out of the bet (variance reduction) and costs nothing in validity: the centre of a block is
    known before the block begins.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._sum = 0
        self._count = 0
        self._frozen = np.nan

    def take(self, values: Ints, champion: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
        """(n,) centres for n further observations (2**-24 units, in order); NaN before the champion's first block is
        over.
        """
        sums = self._sum + np.concatenate([[0], np.cumsum(np.where(champion, values, 0))])
        counts = self._count + np.concatenate([[0], np.cumsum(champion)])
        index = self._seen + np.arange(len(values))
        centres = np.full(len(values), self._frozen)
        start = np.flatnonzero(index % BLOCK == 0)
        for begin, end in zip(start, np.append(start, len(values))[1:], strict=True):
            self._frozen = sums[begin] / MOMENT / counts[begin] if counts[begin] else np.nan
            centres[begin:end] = self._frozen
        self._seen += len(values)
        self._sum, self._count = int(sums[-1]), int(counts[-1])
        return centres
