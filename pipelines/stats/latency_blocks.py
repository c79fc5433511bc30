"""Latency compared between blocks of 60 seconds: what noise local to an arm cannot fool.

Requests of one arm share its pods: their latencies are not independent, and every bet on single requests takes the
shared noise for the challenger's fault. Blocks are bet on in two ways, each with half of the bets:
- the sign of the difference D of the arms' rates is a fair coin given its size, when the noise is symmetric and the
  challenger not slower: `1 + f sign(D) h(|D|)`;
- the capped counts of as many requests of each arm (`capped_counts`) have equal means when the arms are exchangeable by
  block: `1 + f (C1 - C0) / cap` (Waudby-Smith & Ramdas 2024). It needs no symmetry: of rare exceedances most blocks
  have none, and the few that have one speak for themselves.
Both are then test martingales over blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pipelines.stats.capped_counts import capped_count
from pipelines.stats.evidence import GRID, HARM, WIDTH
from pipelines.stats.nats import Floats, Ints, floor_nats, quantise, quantise_up
from pipelines.stats.postings import Posting

BLOCK_US = 60_000_000
SIGN_FRACTIONS: Final[Floats] = np.array([0.15, 0.4, 0.7, 0.95])
COUNT_FRACTIONS: Final[Floats] = np.array([0.2, 0.45, 0.7, 0.95])

assert len(SIGN_FRACTIONS) + len(COUNT_FRACTIONS) == GRID
LEAST = 3
"""Requests an arm needs in a block for its rate to be compared."""
SUFFIX = "#blocks"
"""Added to a metric's name: its evidence from blocks."""
MARGIN = "#margin"
"""Added to a metric's name: its exceedances with the challenger's latencies divided by the harm ratio."""


def block_factors(counts: Ints, scale: Floats, q: float) -> Floats:
    """(n, GRID) log factors of n blocks from (n, 4) counts: the champion's requests and exceedances of its q-quantile,
    then the challenger's. `scale` (n,) is the size of a large difference as known before the block; 0: not known yet.
    """
    n0, e0, n1, e1 = counts.T
    size = np.where(scale > 0.0, np.clip((e1 / n1 - e0 / n0) / np.where(scale > 0.0, scale, 1.0), -1.0, 1.0), 0.0)
    drawn = np.minimum(n0, n1)
    # A cap of one, and room for twice what the champion is expected to have.
    cap = np.minimum(1 + np.floor(2.0 * drawn * (1.0 - q)).astype(np.int64), drawn)
    count = np.clip((capped_count(n1, e1, drawn, cap) - capped_count(n0, e0, drawn, cap)) / cap, -1.0, 1.0)
    return np.hstack([np.log1p(size[:, None] * SIGN_FRACTIONS), np.log1p(count[:, None] * COUNT_FRACTIONS)])


class LatencyBlocks:
    """Exceedance counts by block of wall time and by arm; a block is judged once no answer of it can come any more."""

    def __init__(self, quantiles: Sequence[tuple[str, float]], deadline_s: float) -> None:
        self._names = [name for name, _ in quantiles]
        self._q = [q for _, q in quantiles]
        self._deadline_us = round(deadline_s * 1e6)
        self._open: dict[tuple[int, int], Ints] = {}
        self._size = np.zeros(len(self._names))
        self._judged = np.zeros(len(self._names), dtype=np.int64)

    def take(self, column: int, wall: Ints, stage: Ints, arm: Ints, exceeds: Ints) -> None:
        """Counts observations of metric number `column`: wall time (us), stage, arm (1 = challenger), exceedance (0
        or 1).
        """
        if not len(wall):
            return
        block = wall // BLOCK_US
        stages = int(stage.max()) + 1
        least = int(block.min())
        cell = (block - least) * stages + stage
        # counts[cell] = (champion's observations, its exceedances, challenger's observations, its exceedances)
        seen = np.bincount(cell * 4 + 2 * arm, minlength=4)
        above = np.bincount((cell * 4 + 2 * arm + 1)[exceeds > 0], minlength=len(seen))
        size = -(-max(len(seen), len(above)) // 4) * 4
        counts = np.zeros(size, dtype=np.int64)
        counts[: len(seen)] += seen
        counts[: len(above)] += above
        table = counts.reshape(-1, 4)
        for place in np.flatnonzero(table.any(axis=1)).tolist():
            b, k = divmod(place, stages)
            held = self._open.setdefault((b + least, k), np.zeros((len(self._names), 4), dtype=np.int64))
            held[column] += table[place]

    def close(self, wall: Ints, first: int, parts: int) -> list[Posting]:
        """Judges the blocks whose last answer is due by the wall watermark `wall` (by position from `first`)."""
        if not len(wall) or not self._names:
            return []
        over = {key: (key[0] + 1) * BLOCK_US + self._deadline_us for key in self._open}
        keys = sorted(key for key in self._open if over[key] <= int(wall[-1]))
        if not keys:
            return []
        counts = np.stack([self._open.pop(key) for key in keys])
        at = first + np.searchsorted(wall, np.array([over[key] for key in keys]), side="left")
        stage = np.array([key[1] for key in keys], dtype=np.int64)
        judged = [self._judge(column, counts[:, column]) for column in range(len(self._names))]
        return [
            Posting(
                name + SUFFIX, at[chosen], stage[chosen], np.full((len(chosen), parts), -1, dtype=np.int64), rows=rows
            )
            for name, (chosen, rows) in zip(self._names, judged, strict=True)
            if len(chosen)
        ]

    def _judge(self, column: int, counts: Ints) -> tuple[Ints, Ints]:
        """Which of the (n, 4) counts can be compared, and their increments."""
        chosen = np.flatnonzero((counts[:, 0] >= LEAST) & (counts[:, 2] >= LEAST))
        n0, e0, n1, e1 = counts[chosen].T
        difference = e1 / n1 - e0 / n0
        # The scale is the mean size of the past differences: known before its block.
        sizes = np.cumsum(np.concatenate([[self._size[column]], np.abs(difference)]))
        judged = self._judged[column] + np.arange(len(chosen))
        scale = 2.0 * sizes[:-1] / np.maximum(judged, 1)
        rows = np.zeros((len(chosen), WIDTH), dtype=np.int64)
        rows[:, :3] = 1
        rows[:, 3], rows[:, 4] = quantise(e1 / n1), quantise(e0 / n0)
        rows[:, 5], rows[:, 6] = quantise(difference), quantise_up(difference**2)
        rows[:, HARM] = floor_nats(block_factors(counts[chosen], scale, self._q[column]))
        self._size[column] = sizes[-1]
        self._judged[column] += len(chosen)
        return chosen, rows
