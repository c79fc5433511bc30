"""Is every event that a gateway wrote in the lake, once? Compares counters on the bus, positions and the lake.

An event in quarantine is accounted for: its bytes are in the lake, and the reason why no row was made of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pipelines.contracts.streams import Gap, Position, Present, StreamKey, finished, stands_still


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One worker epoch. `written`: whole frames on the bus (None: it has left the bus); `stored`: events in the lake's
    tables; `quarantined`: how many were set aside for each reason.

    `lost` are ranges of counters that no frame has; `damaged` says where frames are unreadable, or why the stream
    stands still; `missing` counters are on the bus and collected, but neither in the lake's tables nor in quarantine;
    `twice` are there more than once; `waiting` frames are not collected yet; `torn` bytes at the end of an ended epoch
    were never acknowledged. `ended`: the collector has read the epoch to its end, and nothing more will come.
    """

    stream: str
    written: int | None
    stored: int
    quarantined: dict[str, int]
    lost: list[tuple[int, int]]
    damaged: list[str]
    missing: int
    twice: int
    repeats: int
    waiting: int
    torn: int
    ended: bool

    @property
    def whole(self) -> bool:
        """Whether nothing is lost, damaged, missing or stored twice."""
        return not (self.lost or self.damaged or self.missing or self.twice)


def check(
    on_bus: Mapping[StreamKey, Present],
    positions: Mapping[StreamKey, Position],
    gaps: Sequence[Gap],
    stored: Mapping[StreamKey, np.ndarray],
    quarantined: Mapping[StreamKey, Sequence[tuple[int, str]]],
) -> list[StreamReport]:
    """One report a stream; `stored` holds the counters found in the lake by stream (with repeats, any order),
    `quarantined` those in quarantine with their reasons.
    """
    reports = []
    for key in sorted({*on_bus, *positions, *stored, *quarantined}):
        position = positions.get(key) or Position(key=key)
        present = on_bus.get(key)
        rows, aside = stored.get(key, np.zeros(0, dtype=np.int64)), quarantined.get(key, ())
        there = np.concatenate([rows, np.array([n for n, _ in aside], dtype=np.int64)])
        unique = np.unique(there)
        lost = {(gap.first_n, gap.last_n) for gap in gaps if gap.key == key}
        damaged = [position.problem] if stands_still(position) else []
        counters = np.zeros(0, dtype=np.int64)
        if present is not None:
            counters = np.unique(np.array(present.counters, dtype=np.int64))
            lost |= set(_holes(counters, present))
            damaged = present.damaged or damaged
        expected = np.arange(position.next_n)
        for first, last in lost:
            expected = expected[(expected < first) | (expected > last)]
        reports.append(
            StreamReport(
                stream=str(key),
                written=None if present is None else len(counters),
                stored=len(rows),
                quarantined=dict(Counter(reason for _, reason in aside).most_common()),
                lost=sorted(lost),
                damaged=damaged,
                missing=len(np.setdiff1d(expected, unique)),
                twice=len(there) - len(unique),
                repeats=position.repeats,
                waiting=int((counters >= position.next_n).sum()),
                torn=0 if present is None else present.torn,
                ended=finished(position),
            )
        )
    return reports


def _holes(counters: np.ndarray, present: Present) -> list[tuple[int, int]]:
    """Ranges missing between the first counter that must be there and the last that is, or was said to be."""
    ends = [] if present.written is None else [present.written]
    edges = np.concatenate([[present.since - 1], counters[counters >= present.since], ends]).astype(np.int64)
    jumps = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[at]) + 1, int(edges[at + 1]) - 1) for at in jumps]
