"""Where in time the sample lies: in 2013 under a replay, moved to the present otherwise.

The year is moved by a multiple of 364 days, so that weekdays stay true, and follows itself again and again: 364 days of
it are one cycle. An installation fixes its first cycle once, so that every night has new rows and none ever moves.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

CYCLE_DAYS = 364
DAY_US = 86_400_000_000
CYCLE_US = CYCLE_DAYS * DAY_US
START_US = 1_356_998_400_000_000
"""2013-01-01T00:00Z in microseconds."""
HISTORY_US = 180 * DAY_US


class Shift(msgspec.Struct, frozen=True):
    """`first_us`: how far the first cycle is moved. `repeats`: whether the year follows itself."""

    first_us: int = 0
    repeats: bool = False

    def cycles(self, after_us: int | None, until_us: int, reach_us: int = 8 * DAY_US) -> list[int]:
        """Numbers of the cycles that may have rows known in (after, until], with `reach_us` of slack at both ends."""
        if not self.repeats:
            return [0]
        low = START_US + self.first_us
        first = 0 if after_us is None else max(0, (after_us - low - reach_us) // CYCLE_US)
        last = max(0, (until_us - low + reach_us) // CYCLE_US)
        return list(range(first, last + 1))

    def of(self, cycle: int) -> int:
        """How far a cycle is moved, in microseconds."""
        return self.first_us + cycle * CYCLE_US


def shift_for(now_us: int) -> Shift:
    """The newest first cycle that leaves at least 180 days of history before now."""
    return Shift((now_us - HISTORY_US - START_US) // CYCLE_US * CYCLE_US, repeats=True)


def fixed_shift(path: Path, now_us: int) -> Shift:
    """The shift of an installation: what `path` says; when it says nothing, decided now and written down (once)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Shift)
    except FileNotFoundError:
        pass
    decided = shift_for(now_us)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"first_us": decided.first_us, "repeats": decided.repeats}))
    try:
        os.link(temporary, path)  # fails when another process was first: its decision stands
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return msgspec.json.decode(path.read_bytes(), type=Shift)
