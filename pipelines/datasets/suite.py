"""A dataset's or a view's expectations as data: what the spec's columns say, and the checks it adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipelines.spec.dataset import Check, Column, DatasetSpec
from pipelines.spec.view import Feature, ViewSpec


class Expectation(msgspec.Struct, frozen=True):
    """One expectation by its snake-case name without `expect_`, its arguments, and the reason given for a bad row."""

    name: str
    arguments: dict[str, Any]
    reason: str


def dataset_suite(spec: DatasetSpec) -> list[Expectation]:
    """Keys unique, values there where they must be and inside their bounds, then the spec's own checks."""
    return [unique(spec.key), *_columns(spec.columns), *map(_check, spec.checks)]


def view_suite(spec: ViewSpec) -> list[Expectation]:
    """The same for a view's rows: one row per key and time."""
    keys = [not_null(name) for name in [*spec.entity.keys, "event_timestamp"]]
    return [unique([*spec.entity.keys, "event_timestamp"]), *keys, *_columns(spec.features), *map(_check, spec.checks)]


def unique(columns: Sequence[str]) -> Expectation:
    """No two rows share these columns' values."""
    if len(columns) == 1:
        return Expectation("column_values_to_be_unique", {"column": columns[0]}, f"duplicate {columns[0]}")
    return Expectation(
        "compound_columns_to_be_unique", {"column_list": list(columns)}, f"duplicate ({', '.join(columns)})"
    )


def not_null(column: str) -> Expectation:
    """Every row has a value."""
    return Expectation("column_values_to_not_be_null", {"column": column}, f"{column} is missing")


def _columns(columns: Mapping[str, Column] | Mapping[str, Feature]) -> list[Expectation]:
    made = []
    for name, column in columns.items():
        if not column.nullable:
            made.append(not_null(name))
        if column.min is not None or column.max is not None:
            low = "" if column.min is None else f" below {column.min}"
            high = "" if column.max is None else f" above {column.max}"
            arguments = {"column": name, "min_value": column.min, "max_value": column.max}
            reason = f"{name} is{low}{' or' if low and high else ''}{high}"
            made.append(Expectation("column_values_to_be_between", arguments, reason))
    return made


def _check(check: Check) -> Expectation:
    arguments = check.arguments()
    shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
    return Expectation(
        check.expect.removeprefix("expect_"), arguments, f"{check.expect.removeprefix('expect_')}({shown})"
    )
