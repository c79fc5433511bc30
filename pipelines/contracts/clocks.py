"""The two clocks: event time and wall time.

Under `wall` both are the machine's clock. Under `replay` event now is the driver's persisted tick
(`$SLIPWAY_HOME/clock.json`), written by one driver and read by everyone; requests carry `parameters.event_time`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipelines.contracts.errors import ContractError

MICROS = 1_000_000

EARLIEST_US, LATEST_US = -9_223_372_036_854_775, 9_223_372_036_854_775
"""Event times lie from 1677 to 2262: what 64 bits of nanoseconds hold, and so every store and library on the way."""


def wall_us() -> int:
    """The machine's clock in microseconds since the epoch."""
    return time.time_ns() // 1000


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch of a moment; a naive one is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    delta = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * MICROS + delta.microseconds


def from_us(value: int) -> datetime:
    """The aware UTC moment of microseconds since the epoch."""
    seconds, micros = divmod(value, MICROS)
    return datetime.fromtimestamp(seconds, tz=UTC).replace(microsecond=micros)


def parse_event_time(value: object) -> int:
    """Microseconds of an RFC 3339 text or of an integer that already is in microseconds.

    Raises ContractError, also for one before `EARLIEST_US` or after `LATEST_US`.
    """
    found: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        found = value
    elif isinstance(value, str):
        with suppress(ValueError):
            found = to_us(datetime.fromisoformat(value))
    if found is None:
        raise ContractError("event time", got=repr(value), expected="RFC 3339 text or integer microseconds")
    if not EARLIEST_US <= found <= LATEST_US:
        raise ContractError("event time", got=repr(value), expected="a time between the years 1677 and 2262")
    return found


class Clock:
    """Event now, of either kind. `mode` is `wall` or `replay`; `path` is the tick file of a replay."""

    def __init__(self, mode: str, path: Path) -> None:
        if mode not in ("wall", "replay"):
            raise ContractError("SLIPWAY_CLOCK", got=mode, expected="wall or replay")
        self.mode = mode
        self.path = path

    def event_now_us(self) -> int:
        """Event now in microseconds. Raises ContractError under replay before the first tick."""
        if self.mode == "wall":
            return wall_us()
        try:
            return int(json.loads(self.path.read_text())["event_us"])
        except FileNotFoundError:
            raise ContractError(
                "replay clock",
                got=f"no {self.path}",
                expected="a tick",
                hint="Start the driver, or use SLIPWAY_CLOCK=wall.",
            ) from None

    def tick(self, event_us: int) -> None:
        """Persist the replay's event now (atomic rename). Raises ContractError under wall."""
        if self.mode != "replay":
            raise ContractError("clock tick", got=self.mode, expected="replay")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"event_us": event_us}))
        temporary.replace(self.path)
