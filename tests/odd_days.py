"""A small lake of made-up rows about the times at which engines disagree: leap days, clock changes, the year's end.

Rows are made from the dataset specs alone: nulls where they are allowed, few values so that keys and times repeat,
numbers whole, as the sample's are (a cast of 12.5 to an integer is 12 on one engine and 13 on the other).
"""

from __future__ import annotations

import random
from collections.abc import Container
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings
from pipelines.spec.dataset import Column, DatasetSpec
from pipelines.spec.loading import load_dataset, names
from pipelines.wiring import datasets

NIGHTS = (
    "2012-02-28T21:00:00Z",  # into a leap day
    "2012-12-31T20:00:00Z",
    "2013-03-10T03:00:00Z",  # New York springs forward at 07:00Z
    "2013-11-03T02:00:00Z",  # and falls back at 06:00Z
)
ROWS = 50
"""A night and dataset."""
REGISTERS = ("planes",)
"""They come out before: a landing at the very time of its register row would give the plane two rows of one time."""
MIDDLE_US = parse_event_time("2013-03-10T07:30:00Z")
END_US = parse_event_time("2013-12-01T00:00:00Z")

_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "timestamp": pa.timestamp("us", "UTC")}


def publish(settings: Settings, only: Container[str] | None = None, seed: int = 7) -> None:
    """Every dataset of the project, or those named, published into the settings' lake."""
    for name in names(settings.include_dir, "datasets"):
        if only is not None and name not in only:
            continue
        spec = load_dataset(settings.include_dir, name)
        table = dataset(spec, random.Random(f"{seed} {name}"))
        open_lake(settings).append(datasets.table_of(name), table, partition_by=["day"], txn=(datasets.INGEST, END_US))


def dataset(spec: DatasetSpec, draw: random.Random) -> pa.Table:
    """Rows of one dataset in the lake's layout; no two share the dataset's key."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for night in NIGHTS:
        for _ in range(ROWS):
            told = datetime.fromisoformat(night) + timedelta(minutes=10 * draw.randrange(20 * 6))
            if spec.name in REGISTERS:
                told -= timedelta(days=3)
            row = {name: _value(name, column, draw, len(rows), told) for name, column in spec.columns.items()}
            # What is announced ahead lies ahead; all other times are past when a row is told.
            row[spec.event_time] = told + timedelta(hours=24, minutes=draw.randrange(8 * 60))
            row[spec.known_at] = told
            row["known_at"] = told + timedelta(microseconds=spec.arrival_delay.us)
            rows.setdefault(tuple(row[key] for key in spec.key), row)
    types = {name: _ARROW[column.type] for name, column in spec.columns.items()}
    types |= {"known_at": _ARROW["timestamp"], "day": pa.date32()}
    listed = [{**row, "day": row["known_at"].astimezone(UTC).date()} for row in rows.values()]
    return pa.Table.from_pylist(listed, schema=pa.schema(types))


def _value(name: str, column: Column, draw: random.Random, number: int, told: datetime) -> Any:
    if column.nullable and draw.random() < 0.2:
        return None
    if column.type == "string":
        return draw.choice(("EWR", "JFK"))
    if column.type == "timestamp":
        return told - timedelta(minutes=draw.randrange(1, 30 * 60))
    if name.endswith("_id"):
        return number
    low, high = max(column.min or 0, -50), min(200 if column.max is None else column.max, 2_100)
    whole = draw.randint(int(low), int(low + (high - low) / 8))  # sums of several stay within bounds, too
    return float(whole) if column.type == "float64" else whole
