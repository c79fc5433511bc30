"""Latency compared between blocks of 60 seconds: what noise local to an arm cannot fool.

Requests of one arm share its pods: their latencies are not independent, and every bet on single requests takes the
shared noise for the challenger's fault. Between blocks the sign of the difference is a fair coin given its size when
the noise is symmetric and the challenger not slower; the bet `1 + f sign(D) h(|D|)` is then a test martingale over
blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.stats.bets import MEAN_FRACTIONS
from pipelines.stats.evidence import HARM, WIDTH
from pipelines.stats.nats import MOMENT, Ints, floor_nats, quantise, quantise_up
from pipelines.stats.postings import Posting

BLOCK_US = 60_000_000
LEAST = 3
"""Requests an arm needs in a block for its rate to be compared."""
SUFFIX = "#blocks"
"""Added to a metric's name: its evidence from blocks."""
MARGIN = "#margin"
"""Added to a metric's name: its exceedances with the challenger's latencies divided by the harm ratio."""


class LatencyBlocks:
    """Exceedance counts by block of wall time and by arm; a block is judged once no answer of it can come any more."""

    def __init__(self, names: Sequence[str], deadline_s: float) -> None:
        self._names = list(names)
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
        judged: list[list[tuple[int, int, Ints]]] = [[] for _ in self._names]
        for key in sorted(self._open):
            over = (key[0] + 1) * BLOCK_US + self._deadline_us
            if over > int(wall[-1]):
                break
            at = first + int(np.searchsorted(wall, over, side="left"))
            counts = self._open.pop(key)
            for column, done in enumerate(judged):
                row = self._judge(column, counts[column])
                if row is not None:
                    done.append((at, key[1], row))
        return [
            Posting(
                name + SUFFIX,
                np.array([at for at, _, _ in done], dtype=np.int64),
                np.array([stage for _, stage, _ in done], dtype=np.int64),
                np.full((len(done), parts), -1, dtype=np.int64),
                rows=np.stack([row for _, _, row in done]),
            )
            for name, done in zip(self._names, judged, strict=True)
            if done
        ]

    def _judge(self, column: int, counts: Ints) -> Ints | None:
        n0, e0, n1, e1 = (int(x) for x in counts)
        if n0 < LEAST or n1 < LEAST:
            return None
        difference = e1 / n1 - e0 / n0
        judged = int(self._judged[column])
        # The scale is the mean size of the past differences: known before this block.
        scale = 2.0 * self._size[column] / judged if judged else 0.0
        row = np.zeros(WIDTH, dtype=np.int64)
        row[:3] = 1
        row[3], row[4] = round(e1 / n1 * MOMENT), round(e0 / n0 * MOMENT)
        row[5], row[6] = quantise(difference), quantise_up(difference**2)
        if scale > 0.0:
            size = float(np.clip(difference / scale, -1.0, 1.0))
            row[HARM] = floor_nats(np.log1p(MEAN_FRACTIONS * size))
        self._size[column] += abs(difference)
        self._judged[column] += 1
        return row
