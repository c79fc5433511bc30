"""Sequence numbers that never arrive: each is a lost assignment.

Rows are ordered by time, numbers by whoever gave them; gateways whose clocks or queues differ by a second are a second
apart in both. A number is missing only when one above it has waited for `response_deadline_s` of the wall clock, and no
longer when it comes after all.
"""

from __future__ import annotations

import numpy as np

from pipelines.stats.nats import Ints
from pipelines.stats.postings import Count


class SeqGaps:
    """What is not there yet of one rollout's sequence numbers. Depends on the rows' order, not on how they are cut."""

    def __init__(self, deadline_us: int) -> None:
        self._deadline_us = deadline_us
        self._base: int | None = None
        self._top = 0  # numbers above `_base` and up to this one have had their time
        none = np.zeros(0, dtype=np.int64)
        self._waiting = (none, none, none)

    def take(self, wall: Ints, first: int, seq: Ints, position: Ints, stage: Ints) -> Count:
        """Counts of one batch: `wall` (n,) is its watermark by position from `first`; its assignments (m,) have `seq`,
        `position` and `stage`.
        """
        due = wall[position - first] + self._deadline_us + 1
        held = len(self._waiting[0])
        seq, due, stage = (np.concatenate(pair) for pair in zip(self._waiting, (seq, due, stage), strict=True))
        arrived = np.concatenate([np.full(held, first - 1), position])
        # The watermark never falls: who came first is over first.
        place = np.searchsorted(wall, due, side="left")
        over = int(np.searchsorted(place, len(wall), side="left"))
        self._waiting = (seq[over:], due[over:], stage[over:])
        if self._base is None and over:
            self._base = self._top = int(seq[arrived <= place[0] + first].min()) - 1
        if self._base is None:
            return Count("gaps", seq[:0], stage[:0], seq[:0])
        ready, tops = place[:over] + first, np.maximum(np.maximum.accumulate(seq[:over]), self._top)
        # Those that came after their time, and those of this batch's rises; each is there from its arrival on.
        late = (seq <= self._top) & (seq > self._base) & (arrived >= first)
        step = np.searchsorted(tops, seq, side="left")
        met = np.flatnonzero((seq > self._top) & (step < over))
        at = np.concatenate([ready, arrived[late], np.maximum(arrived[met], ready[step[met]])])
        where = np.concatenate([stage[:over], stage[late], stage[step[met]]])
        amount = np.concatenate([np.diff(tops, prepend=self._top), np.full(int(late.sum()) + len(met), -1)])
        self._top = int(tops[-1]) if over else self._top
        net = np.bincount(at - first, amount, minlength=len(wall)).astype(np.int64)
        stage_at = np.zeros(len(wall), dtype=np.int64)
        stage_at[at - first] = where
        changed = np.flatnonzero(net)
        return Count("gaps", changed + first, stage_at[changed], net[changed])
