"""The events of the stream benchmarks, drawn by their number alone: good ones, late ones, and those nobody can use.

Of a hundred payments of 200 accounts about ten are up to 5 minutes late, five bear the stamp of up to 20 seconds ago
(what a producer held back), one is later than the watermark, and one is broken in one of four ways.
"""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import NamedTuple

SEED = 11
ACCOUNTS = 200
PUNCTUAL, LATE, HELD_BACK, TOO_LATE, BROKEN = "punctual", "late", "held back", "too late", "broken"
_WEIGHTS = {PUNCTUAL: 83, LATE: 10, HELD_BACK: 5, TOO_LATE: 1, BROKEN: 1}


class Event(NamedTuple):
    """A message: its value, its Kafka timestamp (milliseconds), its Kafka key, and what kind of event it is."""

    value: str
    stamp_ms: int
    account: str
    kind: str


def event(n: int, now: float) -> Event:
    """The event of a number, told at `now` (seconds since the epoch)."""
    draw = random.Random(f"{SEED} {n}")
    kind = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    account = f"a{draw.randrange(ACCOUNTS)}"
    came = now - (draw.uniform(1, 20) if kind == HELD_BACK else 0)
    late = {LATE: draw.uniform(0, 300), TOO_LATE: draw.uniform(700, 900)}.get(kind, 0.0)
    at = datetime.fromtimestamp(came - late, UTC).isoformat()
    row: dict[str, object] = {"n": n, "account": account, "at": at, "cents": draw.randrange(10_000)}
    value = json.dumps(row)
    if kind == BROKEN:
        value = draw.choice(
            [value[:-9], f"[{n}]", json.dumps({**row, "cents": "many"}), json.dumps({**row, "cents": -1})]
        )
    return Event(value, int(came * 1000), account, kind)
