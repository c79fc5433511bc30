"""Four tables of rows -> one canonical order of positions.

The order is the column `order` where a table has it, else `ts`. Rows with equal order are put by kind (assignment,
response, label, kpi) and then by their own content, so that shuffled rows and other cuts of the files give the same
bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import ContractError
from pipelines.stats.nats import Floats, Ints

KINDS = ("assignments", "responses", "labels", "kpi")
_NEEDED: dict[str, tuple[str, ...]] = {
    "assignments": ("seq", "request_id", "ts", "stage", "arm", "share"),
    "responses": ("request_id", "arm", "ts", "latency_ms", "status", "score"),
    "labels": ("request_id", "ts", "label"),
    "kpi": ("request_id", "ts", "value"),
}
_TIES: dict[str, tuple[str, ...]] = {
    "assignments": ("seq", "request_id"),
    "responses": ("request_id", "arm", "status", "score", "latency_ms", "beside_ms"),
    "labels": ("request_id", "label"),
    "kpi": ("request_id", "value", "metric"),
}


class Rows(NamedTuple):
    """One table in canonical order: its columns, its rows' positions (0-based in the batch) and event times (us)."""

    table: pa.Table
    position: Ints
    ts: Ints


def micros(column: pa.ChunkedArray) -> Ints:
    """Integer microseconds of a timestamp column (any unit) or of an integer column that holds them."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    return cast("Ints", column.to_numpy().astype(np.int64, copy=False))


def floats(column: pa.ChunkedArray) -> Floats:
    """float64 values of a numeric column; null becomes NaN."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    return cast("Floats", pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy())


def plain(column: pa.ChunkedArray) -> pa.Array:
    """One contiguous array, dictionary encoding undone."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        combined = pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], combined.type)
    return combined


def codes(column: pa.ChunkedArray, known: list[str]) -> Ints:
    """(n,) index of each value in `known`, -1 when it is not there."""
    if not len(column):
        return np.zeros(0, dtype=np.int64)
    found = pc.index_in(plain(column).cast(pa.string()), value_set=pa.array(known, pa.string()))
    return cast("Ints", pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64))


def _sortable(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    array = plain(column)
    if pa.types.is_floating(array.type) or pa.types.is_null(array.type):
        return np.nan_to_num(floats(column), nan=-np.inf)
    if pa.types.is_integer(array.type):
        return np.asarray(pc.fill_null(array, -1).to_numpy(zero_copy_only=False))
    return np.unique(np.asarray(array.cast(pa.string()).to_pylist(), dtype=str), return_inverse=True)[1]


def _canonical(kind: str, table: pa.Table) -> tuple[pa.Table, Ints]:
    key = micros(table["order"] if "order" in table.column_names else table["ts"])
    index = None if bool((key[1:] >= key[:-1]).all()) else np.argsort(key, kind="stable")
    ordered = key if index is None else key[index]
    tied = np.zeros(len(ordered), dtype=bool)
    same = ordered[1:] == ordered[:-1]
    tied[1:] |= same
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    if len(places):
        index = np.arange(len(key)) if index is None else index
        members = index[places]
        part = table.take(pa.array(members))
        keys = [_sortable(part[name]) for name in reversed(_TIES[kind]) if name in part.column_names]
        index[places] = members[np.lexsort((*keys, key[members]))]
    return (table if index is None else table.take(pa.array(index))), ordered


def merge(tables: dict[str, pa.Table | None]) -> dict[str, Rows]:
    """The rows of each kind with their positions in one order. Raises ContractError for a missing column."""
    ready: dict[str, tuple[pa.Table, Ints]] = {}
    for kind in KINDS:
        table = tables.get(kind)
        if table is None or table.num_rows == 0:
            continue
        for name in _NEEDED[kind]:
            if name not in table.column_names:
                raise ContractError(f"table {kind}", got=", ".join(table.column_names), expected=f"a column {name}")
        ready[kind] = _canonical(kind, table)
    if not ready:
        return {}
    keys = np.concatenate([key for _, key in ready.values()])
    place = np.empty(len(keys), dtype=np.int64)
    place[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    rows: dict[str, Rows] = {}
    start = 0
    for kind, (table, key) in ready.items():
        rows[kind] = Rows(table, place[start : start + len(key)], micros(table["ts"]))
        start += len(key)
    return rows
