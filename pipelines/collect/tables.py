"""Numbered events as Arrow tables, one a kind: the columns of the inference log in the lake."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from pipelines.collect.numbering import Numbered
from pipelines.contracts.events import KINDS, Assignment, Kpi, Label, Override, Response

STAMP = pa.timestamp("us", tz="UTC")

_COMMON = [
    ("gateway", pa.string()),
    ("worker", pa.int32()),
    ("epoch", pa.int64()),
    ("n", pa.int64()),
    ("model", pa.string()),
    ("seq", pa.int64()),
    ("batch", pa.int64()),
    ("request_id", pa.string()),
    ("event_time", STAMP),
    ("wall_time", STAMP),
]
_TEXT, _FLAG, _LONG, _INT, _REAL = pa.string(), pa.bool_(), pa.int64(), pa.int32(), pa.float64()
_OWN: dict[str, list[tuple[str, Any]]] = {
    "assignment": [
        ("rollout_seq", _LONG),
        ("duplicate", _FLAG),
        ("arm", _TEXT),
        ("share_ppm", _INT),
        ("salt", _TEXT),
        ("unit", _TEXT),
        ("mode", _TEXT),
        ("stage", _TEXT),
        ("rollout_id", _TEXT),
        ("route_version", _LONG),
        ("champion", _TEXT),
        ("challenger", _TEXT),
        ("rows", _INT),
        ("slices", _TEXT),
        ("inputs", _TEXT),
        ("retry", _FLAG),
        ("paired", _FLAG),
        ("traceparent", _TEXT),
    ],
    "response": [
        ("arm", _TEXT),
        ("release", _TEXT),
        ("rollout_id", _TEXT),
        ("status", _TEXT),
        ("served", _FLAG),
        ("shadow", _FLAG),
        ("fallback", _FLAG),
        ("raw", _TEXT),
        ("score", _TEXT),
        ("outputs", _TEXT),
        ("latency_us", _LONG),
        ("features_us", _LONG),
        ("model_us", _LONG),
        ("features", _TEXT),
        ("degraded", _TEXT),
        ("error", _TEXT),
        ("beside_us", _LONG),
    ],
    "label": [("row", _INT), ("value", _REAL)],
    "kpi": [("name", _TEXT), ("value", _REAL)],
    "override": [
        ("rollout_id", _TEXT),
        ("route_version", _LONG),
        ("reason", _TEXT),
        ("actor", _TEXT),
        ("action", _TEXT),
    ],
}
_NESTED = {"slices", "inputs", "raw", "score", "outputs", "features", "degraded"}
_PAYLOAD = {"inputs", "features"}
SCHEMAS: dict[str, pa.Schema] = {kind: pa.schema(_COMMON + _OWN[kind]) for kind in KINDS}
_KIND_OF = {Assignment: "assignment", Response: "response", Label: "label", Kpi: "kpi", Override: "override"}

_json = msgspec.json.Encoder(order="deterministic")


def to_tables(numbered: Iterable[Numbered], batch: int) -> dict[str, pa.Table]:
    """One table a kind that occurs, rows in the given order; nested fields are JSON text (NaN becomes null there).

    The payload of a request that was not sampled is null: nothing is known of it. `{}` and `[]` mean that it had none.
    """
    rows: dict[str, list[Numbered]] = {}
    for item in numbered:
        rows.setdefault(_KIND_OF[type(item.event)], []).append(item)
    return {kind: _table(kind, rows[kind], batch) for kind in KINDS if kind in rows}


def _table(kind: str, rows: Sequence[Numbered], batch: int) -> pa.Table:
    ids = [item.event.id for item in rows]
    columns: dict[str, Any] = {
        "gateway": [event_id.gateway for event_id in ids],
        "worker": [event_id.worker for event_id in ids],
        "epoch": [event_id.epoch for event_id in ids],
        "n": [event_id.n for event_id in ids],
        "seq": [item.seq for item in rows],
        "batch": [batch] * len(rows),
        "event_time": [item.event.event_us for item in rows],
        "wall_time": [item.event.wall_us for item in rows],
    }
    if kind == "override":
        columns["request_id"] = [None] * len(rows)
    if kind == "assignment":
        columns["rollout_seq"] = [item.rollout_seq for item in rows]
        columns["duplicate"] = [item.duplicate for item in rows]
    events: list[Any] = [item.event for item in rows]
    for name in SCHEMAS[kind].names:
        if name in columns:
            continue
        columns[name] = [_value(event, name) for event in events]
    schema = SCHEMAS[kind]
    return pa.Table.from_arrays([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _value(event: Any, name: str) -> Any:
    if name in _PAYLOAD and not event.sampled:
        return None
    value = getattr(event, name)
    return _json.encode(value).decode() if name in _NESTED else value


def _array(values: list[Any], kind: Any) -> Any:
    if kind == STAMP:
        return pa.array(values, pa.int64()).cast(STAMP)
    return pa.array(values, kind)
