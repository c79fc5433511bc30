"""Is every event that a gateway wrote in the lake, once? Compares counters on the bus, positions and the lake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from pipelines.collect import streams
from pipelines.collect.streams import Gap, Position, StreamKey
from pipelines.contracts import segments


class StreamReport(msgspec.Struct, frozen=True, kw_only=True):
    """One worker epoch. `written`: whole frames on the bus (None: its segments are gone); `stored`: events in the lake.

    `lost` are ranges of counters that no frame has; `damaged` says where frames are unreadable; `missing` counters are
    on the bus and collected, but not in the lake; `twice` are in the lake more than once; `waiting` frames are not
    collected yet; `torn` bytes at the end of an ended epoch were never acknowledged.
    """

    stream: str
    written: int | None
    stored: int
    lost: list[tuple[int, int]]
    damaged: list[str]
    missing: int
    twice: int
    repeats: int
    waiting: int
    torn: int

    @property
    def whole(self) -> bool:
        """Whether nothing is lost, damaged, missing or stored twice."""
        return not (self.lost or self.damaged or self.missing or self.twice)


def check(
    bus: Path,
    positions: Mapping[StreamKey, Position],
    gaps: list[Gap],
    stored: Mapping[StreamKey, np.ndarray],
) -> list[StreamReport]:
    """One report a stream; `stored` holds the counters found in the lake by stream (with repeats, any order)."""
    on_bus = streams.streams(bus)
    done = streams.ended(bus, on_bus)
    reports = []
    for key in sorted({*on_bus, *positions, *stored}):
        position = positions.get(key) or Position(key=key)
        there = np.sort(stored.get(key, np.zeros(0, dtype=np.int64)))
        unique = np.unique(there)
        lost = [(gap.first_n, gap.last_n) for gap in gaps if gap.key == key]
        written, counters, damaged, torn = _read_bus(bus, key, key in done) if key in on_bus else (None, None, [], 0)
        if counters is not None:
            lost = sorted({*lost, *_holes(counters)})
        expected = np.arange(position.next_n)
        for first, last in lost:
            expected = expected[(expected < first) | (expected > last)]
        reports.append(
            StreamReport(
                stream=str(key),
                written=written,
                stored=len(there),
                lost=lost,
                damaged=damaged,
                missing=len(np.setdiff1d(expected, unique)),
                twice=len(there) - len(unique),
                repeats=position.repeats,
                waiting=0 if counters is None else int((counters >= position.next_n).sum()),
                torn=torn,
            )
        )
    return reports


def _read_bus(bus: Path, key: StreamKey, is_ended: bool) -> tuple[int, np.ndarray, list[str], int]:
    """(frames, their counters, unreadable places, bytes of a torn tail) of a stream's segments."""
    counters: list[int] = []
    damaged: list[str] = []
    torn = 0
    starts = streams.segment_starts(bus, key)
    for index, start in enumerate(starts):
        path = segments.segment_path(bus, *key, start)
        data = path.read_bytes()
        at = len(segments.MAGIC)
        found = [(frame.n, frame.end) for frame in segments.read_frames(data)]
        if found:
            counters += [n for n, _ in found]
            at = found[-1][1]
        left = data[at:]
        following = starts[index + 1] if index + 1 < len(starts) else None
        next_n = counters[-1] + 1 if counters else start
        if left and (streams.resync(left, next_n) is not None or (following is not None and following > next_n)):
            damaged.append(f"{path.name} at byte {at}")
        elif left and following is None and is_ended:
            torn += len(left)
    return len(counters), np.array(counters, dtype=np.int64), damaged, torn


def _holes(counters: np.ndarray) -> list[tuple[int, int]]:
    """Ranges missing below the largest counter."""
    known = np.unique(counters)
    edges = np.concatenate([[-1], known])
    jumps = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[at]) + 1, int(edges[at + 1]) - 1) for at in jumps]
