"""Messages as rows of a dataset: JSON objects, read as the spec declares, placed in time, or refused with reasons.

A row is known when it says so (`known_at`, arrival delay included), or when its message came, whichever is later: so a
row that turns up late changes nothing that could be read before. How late it may be, the stream's watermark says. Every
judgement is about one message and what came before it; none depends on how messages are cut into batches.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from pipelines.datasets.conform import read_as_declared
from pipelines.datasets.plain_checks import failures
from pipelines.datasets.suite import dataset_suite
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.durations import Duration

NUMBER = "__n"
_MISSING = " is missing"


class Message(NamedTuple):
    """What came, when (event clock, microseconds), and where it lies: `offset` counts up within its `source`."""

    value: bytes
    time_us: int
    source: str
    offset: int


class Read(NamedTuple):
    """Rows in the lake's layout with the number of their message in `NUMBER`, and why messages are refused."""

    rows: pa.Table
    refused: dict[int, list[str]]


def read(
    connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, watermark: Duration, messages: Sequence[Message]
) -> Read:
    """Every message that is a row, in order, the refused ones too as far as they can be read."""
    refused: dict[int, list[str]] = {}
    texts: list[tuple[int, dict[str, str | None]]] = []
    for number, message in enumerate(messages):
        found = _object(message.value)
        if isinstance(found, str):
            refused[number] = [found]
        else:
            texts.append((number, {name: _text(found.get(name)) for name in spec.columns}))
    columns: dict[str, pa.Array] = {
        name: pa.array([row[name] for _, row in texts], pa.string()) for name in spec.columns
    }
    columns[NUMBER] = pa.array([number for number, _ in texts], pa.int64())
    columns["__time"] = pa.array([messages[number].time_us for number, _ in texts], pa.int64())
    connection.register("__incoming", pa.table(columns))
    read_ = connection.execute(_reading_sql(spec)).fetch_arrow_table()
    connection.unregister("__incoming")
    numbers = read_.column(NUMBER).to_pylist()
    unreadable = read_.column("__unreadable").to_pylist()
    for place, reasons in failures(read_, dataset_suite(spec)).items():
        refused.setdefault(numbers[place], []).extend(reasons)
    for number, text in zip(numbers, unreadable, strict=True):
        if text is not None:
            # What cannot be read is null, and would also be told as missing.
            refused[number] = [text, *(one for one in refused.get(number, []) if not one.endswith(_MISSING))]
    for number, late_us in zip(numbers, read_.column("__late_us").to_pylist(), strict=True):
        if late_us is not None and abs(late_us) > watermark.us:
            side = "late" if late_us > 0 else "early"
            by = str(Duration(abs(late_us), "event_time")).removesuffix(" event_time")
            refused.setdefault(number, []).append(f"{side} by {by}; the watermark is {watermark}")
    return Read(read_.drop_columns(["__unreadable", "__late_us"]), refused)


def _reading_sql(spec: DatasetSpec) -> str:
    typed, unreadable = read_as_declared(spec)
    told = f'epoch_us(CAST("{spec.known_at}" AS TIMESTAMPTZ)) + {spec.arrival_delay.us}'
    known = "make_timestamptz(greatest(__told, __time))"
    return f"""
        WITH read AS (SELECT {", ".join(typed)}, {unreadable} AS __unreadable, {NUMBER}, __time FROM __incoming),
        told AS (SELECT *, {told} AS __told FROM read)
        SELECT * EXCLUDE (__time, __told), {known} AS known_at, CAST({known} AS DATE) AS day,
               __time - __told AS __late_us
        FROM told ORDER BY {NUMBER}"""


def _object(value: bytes) -> dict[str, Any] | str:
    """The message's object, or why it is none."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return found if isinstance(found, dict) else f"not a JSON object, but {type(found).__name__}"


def _text(value: Any) -> str | None:
    """A value as the text that a CSV file would have of it, so that both are read by the same rules."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
