"""Frames in quarantine as rows of the lake."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pyarrow as pa

from pipelines.collect.quarantine import Refused

SCHEMA = pa.schema(
    [
        ("gateway", pa.string()),
        ("worker", pa.int32()),
        ("epoch", pa.int64()),
        ("n", pa.int64()),
        ("batch", pa.int64()),
        ("row", pa.string()),
        ("payload", pa.binary()),
        ("reason", pa.string()),
        ("known_at", pa.timestamp("us", tz="UTC")),
    ]
)


def to_table(refused: Sequence[Refused], batch: int, now_us: int) -> pa.Table:
    """The rows in quarantine of a batch. `now_us`: wall time at which they were set aside."""
    rows = [
        msgspec.structs.asdict(one.id)
        | {"batch": batch, "row": _text(one), "payload": one.payload, "reason": one.reason, "known_at": now_us}
        for one in refused
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _text(refused: Refused) -> str | None:
    """The payload as JSON where it is a map, else whatever of it is text; null where it is not kept."""
    if refused.payload is None:
        return None
    try:
        if refused.claims:
            return msgspec.json.encode(refused.claims).decode()
    except (TypeError, ValueError, RecursionError):  # keys or values that JSON has not
        pass
    return refused.payload.decode(errors="replace")
