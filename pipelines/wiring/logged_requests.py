"""Requests as the inference log has them, scored again: by other releases, or with other inputs.

What comes of it are the four tables of `slipway-gate/1`, so that the gate's own code folds and judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.release import Columns, Release
from pipelines.rollout.policy import Policy
from pipelines.settings import Settings
from pipelines.training.columns import FeatureColumns, inputs_of
from pipelines.training.metrics import Vector
from pipelines.wiring.scoring import point_in_time, score, score_of

STAMP = pa.timestamp("us", tz="UTC")
_ARROW = {"BYTES": pa.string(), "BOOL": pa.bool_(), "INT64": pa.int64(), "INT32": pa.int64()}


class Logged(NamedTuple):
    """Logged requests in order of time: the frame (event_timestamp and inputs), features as read, truths (NaN where
    none is known), slices.
    """

    frame: pa.Table
    features: FeatureColumns
    label: Vector
    label_time: pa.ChunkedArray
    slices: list[dict[str, str]]


def of_rows(rows: pa.Table) -> Logged | None:
    """`event_time`, `inputs`, `features` (a list of texts), `slices`, `label` and `label_time` as they come from the
    log, in that order; None without any row.
    """
    if not rows.num_rows:
        return None
    inputs = [_first_row(text) for text in rows.column("inputs").to_pylist()]
    reads = [_reads(texts) for texts in rows.column("features").to_pylist()]
    frame = {"event_timestamp": rows.column("event_time").cast(STAMP)}
    for name in sorted({name for row in inputs for name in row}):
        frame[name] = pa.chunked_array([_array([row.get(name) for row in inputs])])
    known = [key for key in reads[0] if all(key in row for row in reads)]
    features = {key: np.array([_number(row[key]) for row in reads]) for key in known}
    return Logged(
        pa.table(frame),
        features,
        rows.column("label").to_numpy(),
        rows.column("label_time").cast(STAMP),
        [dict(msgspec.json.decode(text)) if text else {} for text in rows.column("slices").to_pylist()],
    )


def _first_row(text: str) -> dict[str, Any]:
    """The inputs of a request's first row, by name: a request of several rows counts once."""
    decoded: dict[str, list[Any]] = msgspec.json.decode(text)
    return {name: values[0] for name, values in decoded.items() if values}


def _reads(texts: list[str]) -> dict[tuple[str, str], Any]:
    """{(view version, feature): first row's value} over all arms' answers to one request."""
    found: dict[tuple[str, str], Any] = {}
    for text in texts:
        for view, names, _, values in msgspec.json.decode(text):
            found |= {(view, name): column[0] for name, column in zip(names, values, strict=True) if column}
    return found


def with_all_inputs(logged: Logged, arms: Mapping[str, Release]) -> tuple[Logged, str]:
    """The requests that carry what both releases need, and the inputs that others lack, as text.

    An optional input may be missing here and there; one that no request carries was never sent.
    """
    keep = np.ones(logged.frame.num_rows, dtype=bool)
    missing: list[str] = []
    for field in (field for release in arms.values() for field in release.manifest.inputs):
        if field.name in logged.frame.column_names:
            there = np.asarray(logged.frame.column(field.name).is_valid().to_numpy(zero_copy_only=False))
        else:
            there = np.zeros(logged.frame.num_rows, dtype=bool)
        unsent = not there.any()
        if unsent or (field.required and not there.all()):
            keep &= there
            missing.append(f"input {field.name}" if unsent else f"input {field.name} in {int((~there).sum())} of them")
    if keep.all():
        return logged, ""
    mask = pa.array(keep)
    kept = Logged(
        logged.frame.filter(mask),
        {key: values[keep] for key, values in logged.features.items()},
        logged.label[keep],
        logged.label_time.filter(mask),
        [row for row, there in zip(logged.slices, keep, strict=True) if there],
    )
    return kept, ", ".join(dict.fromkeys(missing))


def scores_of(settings: Settings, release: Release, logged: Logged) -> Vector:
    """The release's scores: logged features where the log has all of a view, else the view joined point-in-time."""
    unlogged = [
        pin for pin in release.manifest.views if not all((pin.view, name) in logged.features for name in pin.features)
    ]
    features = {**logged.features, **point_in_time(settings, logged.frame, unlogged)}
    inputs: Columns = inputs_of(_typed(logged.frame, release), release.manifest.inputs)
    return score_of(release, score(release, inputs, features, logged.frame.num_rows))


def _typed(frame: pa.Table, release: Release) -> pa.Table:
    """The inputs in the types that the release declares."""
    names = [field.name for field in release.manifest.inputs if field.name in frame.column_names]
    types = {field.name: _ARROW.get(field.datatype, pa.float64()) for field in release.manifest.inputs}
    return pa.table({name: frame.column(name).cast(types[name]) for name in names})


def case_tables(policy: Policy, stage: str, logged: Logged, scores: Mapping[str, Vector]) -> dict[str, pa.Table]:
    """`assignments`, `responses`, `labels`, `kpi` as if both arms had answered every request, with these scores."""
    count = logged.frame.num_rows
    number = pa.array(np.arange(count, dtype=np.int64))
    times = logged.frame.column("event_timestamp")
    slices = {name: pa.array([row.get(name) for row in logged.slices], pa.string()) for name in policy.slices}
    assignments = pa.table(
        {
            "request_id": number,
            "seq": number,
            "ts": times,
            "stage": pa.array([stage] * count, pa.string()),
            "arm": pa.array(["both"] * count, pa.string()),
            "share": pa.nulls(count, pa.float64()),
            "unit_id": number,
            **slices,
        }
    )
    responses = [
        pa.table(
            {
                "request_id": number,
                "arm": pa.array([arm] * count, pa.string()),
                "ts": times,
                # Nothing was timed here: equal latencies bear no evidence.
                "latency_ms": pa.array(np.zeros(count, dtype=np.float32)),
                "status": pa.array(["ok"] * count, pa.string()),
                "score": pa.array(values),
            }
        )
        for arm, values in scores.items()
    ]
    labels = pa.table({"request_id": number, "ts": logged.label_time, "label": pa.array(logged.label)})
    labels = labels.filter(pa.array(~np.isnan(logged.label)))
    return {
        "assignments": assignments,
        "responses": pa.concat_tables(responses),
        "labels": labels,
        "kpi": pa.table({"request_id": number[:0], "ts": times.slice(0, 0), "value": pa.array([], pa.float64())}),
    }


def _array(values: list[Any]) -> pa.Array:
    """One Arrow column; integers among floats become floats."""
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array(values)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
