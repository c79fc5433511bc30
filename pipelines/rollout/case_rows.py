"""Whether four tables are a case of `slipway-gate/1`: a row that the judge could only misread is refused by its number.

What a live gateway may really send (scores that are null or not finite, late or repeated truths, values outside the
declared range, answers to requests nobody knows) is no mistake here: the fold counts it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipelines.collect.row_order import KINDS, codes, plain
from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.stats.losses import OF_PROBABILITIES, RANK
from pipelines.stats.nats import Ints

Is = Callable[[pa.DataType], bool]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    )


def _is_name(kind: pa.DataType) -> bool:
    return bool(_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind))


def _is_id(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or _is_text(kind))


_INTEGER: tuple[Is, str] = (pa.types.is_integer, "whole numbers")
_ID: tuple[Is, str] = (_is_id, "whole numbers or texts")
_TIME: tuple[Is, str] = (pa.types.is_timestamp, "timestamps: timestamp[us, UTC]")
_TEXT: tuple[Is, str] = (_is_text, "texts")
_NUMBER: tuple[Is, str] = (_is_number, "numbers")
_SLICE: tuple[Is, str] = (_is_name, "texts, whole numbers or true and false")

_COLUMNS: dict[str, dict[str, tuple[Is, str]]] = {
    "assignments": {"seq": _INTEGER, "request_id": _ID, "ts": _TIME, "stage": _TEXT, "arm": _TEXT, "share": _NUMBER},
    "responses": {"request_id": _ID, "arm": _TEXT, "ts": _TIME, "latency_ms": _NUMBER, "status": _TEXT,
                  "score": _NUMBER},
    "labels": {"request_id": _ID, "ts": _TIME, "label": _NUMBER},
    "kpi": {"request_id": _ID, "ts": _TIME, "value": _NUMBER},
}  # fmt: skip
_MAY_BE_NULL = ("share", "latency_ms", "score", "label", "value")


def check_rows(policy: Policy, tables: Mapping[str, pa.Table], names: Mapping[str, str]) -> None:
    """Raises ContractError for the first row (counted from 1) or column that is not as `slipway-gate/1` has it.

    `names`: what an error calls a table; its key by default.
    """
    for key in tables:
        if key not in KINDS:
            near = difflib.get_close_matches(str(key), KINDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise ContractError("tables of a case", got=repr(key), expected="only " + ", ".join(KINDS), hint=hint)
    given = {
        kind: _Table(names.get(kind, kind), tables[kind]) for kind in KINDS if kind in tables and tables[kind].num_rows
    }
    for kind, table in given.items():
        for column, wanted in _COLUMNS[kind].items():
            table.has(column, *wanted, null=column in _MAY_BE_NULL)
    _check_alike(list(given.values()))
    if "assignments" in given:
        _check_assignments(policy, given["assignments"])
    if "responses" in given:
        _check_responses(given["responses"])
    if "labels" in given:
        _check_labels(policy, given["labels"])
    if "kpi" in given and "metric" in given["kpi"].rows.column_names:
        given["kpi"].among("metric", list(policy.kpis), null=True)


class _Table:
    """One table of a case with the name that errors give it."""

    def __init__(self, name: str, rows: pa.Table) -> None:
        self.name, self.rows = name, rows

    def kind_of(self, column: str) -> pa.DataType:
        """The type of a column's values, dictionary encoding undone."""
        kind = self.rows.schema.field(column).type
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    def has(self, column: str, fits: Is, wanted: str, *, null: bool = False) -> None:
        """Raises ContractError unless there is such a column of such values, none missing unless `null`."""
        columns = self.rows.column_names
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.8)
            hint = f"Is it the one called {near[0]!r}?" if near else ""
            raise ContractError(self.name, got=", ".join(columns), expected=f"a column {column}", hint=hint)
        kind = self.kind_of(column)
        if not null:
            self.refuse(column, self.rows[column].is_null() if self.rows[column].null_count else None, "a value")
        if not fits(kind):
            raise ContractError(f"{self.name}, column {column}", got=str(kind), expected=wanted)

    def numbers(self, column: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The values as float64; null is NaN."""
        values = plain(self.rows[column]).cast(pa.float64()).to_numpy(zero_copy_only=False)
        return cast("np.ndarray[Any, np.dtype[np.float64]]", values)

    def among(self, column: str, known: list[str], *, null: bool = False) -> Ints:
        """(n,) index in `known` of each value. Raises ContractError for one that is not there; `null` (-1) may be."""
        found = codes(self.rows[column], known)
        strange = found < 0
        if null:
            strange &= np.asarray(self.rows[column].is_valid())
        near: list[str] = []
        if strange.any():
            near = difflib.get_close_matches(str(self._value(column, int(strange.argmax()))), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        self.refuse(column, strange, "one of " + ", ".join(known), hint)
        return found

    def refuse(self, column: str, wrong: Any, expected: str, hint: str = "") -> None:
        """Raises ContractError for the first row marked in `wrong` (n,) (None: no row is wrong)."""
        if wrong is None:
            return
        mask = np.asarray(wrong)
        if mask.any():
            row = int(mask.argmax())
            value = self._value(column, row)
            got = "null" if value is None else repr(value)
            raise ContractError(f"{self.name}, row {row + 1}: {column}", got=got, expected=expected, hint=hint)

    def _value(self, column: str, row: int) -> object:
        return self.rows[column][row].as_py()


def _check_alike(tables: list[_Table]) -> None:
    """Rows of several tables belong together by `rollout_id` and `request_id`: all tables have them of one kind."""
    for table in tables:
        if any("rollout_id" in each.rows.column_names for each in tables):
            table.has("rollout_id", *_INTEGER)
        first, mine = tables[0].kind_of("request_id"), table.kind_of("request_id")
        if _is_text(first) != _is_text(mine):
            raise ContractError(
                f"{table.name}, column request_id", got=str(mine), expected=f"{first}, as {tables[0].name} has it"
            )


def _check_assignments(policy: Policy, table: _Table) -> None:
    stage = table.among("stage", [stage.name for stage in policy.stages])
    alone = table.among("arm", ["champion", "challenger", "both"]) < 2
    share = table.numbers("share")
    table.refuse("share", (share < 0.0) | (share > 1.0), "a share in [0, 1], or null where no arm is drawn")
    draws = np.array([stage.randomised for stage in policy.stages])
    drawn = (share > 0.0) & (share < 1.0)
    table.refuse("share", draws[stage] & alone & ~drawn, "the share that the arm was drawn with, between 0 and 1")
    table.refuse("share", ~draws[stage] & alone & drawn, "null: the policy's stage draws no arm")
    _check_seq(table)
    if policy.unit == "unit":
        table.has("unit_id", *_ID)
    for name in policy.slices:
        table.has(name, *_SLICE, null=True)


def _check_responses(table: _Table) -> None:
    table.among("arm", ["champion", "challenger"])
    table.among("status", ["ok", "error", "invalid"])
    if "beside_ms" in table.rows.column_names:
        table.has("beside_ms", *_NUMBER, null=True)
    for column in ("latency_ms", "beside_ms"):
        if column in table.rows.column_names:
            took = table.numbers(column)
            table.refuse(column, (took < 0.0) | np.isinf(took), "a time of at least 0, or null")


def _check_labels(policy: Policy, table: _Table) -> None:
    if any(metric.kind == "paired_loss" and metric.loss in (*OF_PROBABILITIES, RANK) for metric in policy.metrics):
        label = table.numbers("label")
        table.refuse("label", (label < 0.0) | (label > 1.0), "0 or 1: the policy's loss is one of probabilities")


def _check_seq(table: _Table) -> None:
    """A sequence number names one assignment of a rollout."""
    seq = table.rows["seq"].to_numpy().astype(np.int64)
    given = "rollout_id" in table.rows.column_names
    rollout = table.rows["rollout_id"].to_numpy().astype(np.int64) if given else np.zeros(len(seq), dtype=np.int64)
    same = rollout[1:] == rollout[:-1]
    if bool((~same | (seq[1:] > seq[:-1])).all()) and bool((rollout[1:] >= rollout[:-1]).all()):
        return
    order = np.lexsort((seq, rollout))
    again = (np.diff(rollout[order]) == 0) & (np.diff(seq[order]) == 0)
    wrong = np.zeros(len(seq), dtype=np.bool_)
    wrong[order[1:][again]] = True
    table.refuse("seq", wrong, "a number that no other assignment of the rollout has")
