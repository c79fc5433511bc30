"""Streams of the inference log and how far each has been read: what every reader of the bus speaks of.

A stream is one worker epoch. Its counters `n` run from 0 without holes, so that whoever reads it knows what is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from pipelines.contracts.segments import Frame

_LONGEST = 255


class StreamKey(NamedTuple):
    """One start of one worker of one gateway."""

    gateway: str
    worker: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.gateway}/{self.worker}-{self.epoch}"


def key_of(gateway: str, worker: str, epoch: str) -> StreamKey | None:
    """The stream of these names on the bus; None for what no gateway is called and no store could keep."""
    if not (0 < len(gateway) <= _LONGEST and "\0" not in gateway and worker.isdecimal() and epoch.isdecimal()):
        return None
    key = StreamKey(gateway, int(worker), int(epoch))
    return key if key.worker < 2**31 and key.epoch < 2**63 else None


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """How far a stream has been read: inside the segment that starts with counter `segment`, up to `offset` bytes.

    `next_n` is the counter expected next; `repeats` counts frames whose counter had been read before; `problem` says
    why the stream stands still (empty: it does not).
    """

    key: StreamKey
    segment: int = -1
    offset: int = 0
    next_n: int = 0
    repeats: int = 0
    problem: str = ""


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Whole frames of one stream in one place: the first counter in them and their number.

    In a segment folder: bytes `start`..`end` of the segment that begins with counter `segment`. On a topic: the
    stream's messages at offsets `start`..`end` (without `end`) of `source`, which is `<topic>@<its id>/<partition>`.
    """

    gateway: str
    worker: int
    epoch: int
    segment: int = -1
    source: str = ""
    start: int
    end: int
    first_n: int
    frames: int

    @property
    def key(self) -> StreamKey:
        """The stream it belongs to."""
        return StreamKey(self.gateway, self.worker, self.epoch)


class Gap(NamedTuple):
    """Counters that are missing between two frames of one stream, both ends included: lost events."""

    key: StreamKey
    first_n: int
    last_n: int


class Scan(msgspec.Struct, kw_only=True):
    """What one pass over the bus found beyond the given positions; `frames` lie in the order of `ranges`.

    `offsets` holds, on a topic, the next offset to read by `source`.
    """

    ranges: list[Range] = []
    frames: list[list[Frame]] = []
    positions: dict[StreamKey, Position] = {}
    gaps: list[Gap] = []
    offsets: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Frames found."""
        return sum(len(part) for part in self.frames)


ENDED = "ended: "
"""How the `problem` of a stream begins that has been read to its end."""


class Present(msgspec.Struct, kw_only=True):
    """What the bus holds of one stream: the counters of its whole frames (each once or more, in any order).

    `written` counts the events that its writer said it wrote (None: it did not say). Counters below `since` have left
    the bus in order. `damaged` names unreadable places, `torn` counts the bytes of a tail that nobody acknowledged.
    """

    counters: list[int] = []
    written: int | None = None
    since: int = 0
    damaged: list[str] = []
    torn: int = 0


class Taken(NamedTuple):
    """What frames add to a stream: the position behind them, those not had before, and holes of the log before them."""

    position: Position
    frames: list[Frame]
    gaps: list[Gap]


def take(position: Position, frames: Iterable[Frame]) -> Taken:
    """Take frames in at a stream's position: those it has had are counted as repeats, a hole before one is a gap."""
    expected, repeats = position.next_n, position.repeats
    fresh: list[Frame] = []
    gaps: list[Gap] = []
    for frame in frames:
        if frame.n < expected:
            repeats += 1
            continue
        if frame.n > expected:
            gaps.append(Gap(position.key, expected, frame.n - 1))
        fresh.append(frame)
        expected = frame.n + 1
    return Taken(msgspec.structs.replace(position, next_n=expected, repeats=repeats), fresh, gaps)


def finished(position: Position | None) -> bool:
    """Whether a stream has been read to its end and will not grow."""
    return position is not None and position.problem.startswith(ENDED)


def stands_still(position: Position) -> bool:
    """Whether the stream has a problem that needs a person (a torn tail of an ended epoch does not)."""
    return bool(position.problem) and not finished(position)
