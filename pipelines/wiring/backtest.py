"""The backtest: what the challenger would have answered to requests whose truth is known by now.

Both arms are run over the same logged inputs and the features as they were logged; views that were not logged come by
point-in-time join. Only requests after the last label that either release was fitted on count. The result are the four
tables of `slipway-gate/1`; where there is nothing to judge they are empty and say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.delta_lake import connect, open_lake
from pipelines.contracts.clocks import from_us
from pipelines.contracts.release import Columns, Release
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.training.columns import FeatureColumns, inputs_of
from pipelines.training.metrics import Vector
from pipelines.wiring.scoring import load_release, point_in_time, score, score_of

NO_DATA = b"no_data"
LEAST = 500
MOST = 20_000
_STAMP = pa.timestamp("us", tz="UTC")
_ARROW = {"BYTES": pa.string(), "BOOL": pa.bool_(), "INT64": pa.int64(), "INT32": pa.int64()}

_LOGGED = """
    WITH asked AS (
        SELECT request_id, event_time, inputs, slices FROM assignment
        WHERE model = $model AND NOT duplicate AND inputs IS NOT NULL AND event_time > $after AND event_time <= $until
    ), answered AS (
        SELECT request_id, list(features ORDER BY seq) AS features FROM response
        WHERE model = $model AND status = 'ok' AND features IS NOT NULL
          AND event_time > $after AND event_time <= $until GROUP BY 1
    ), truth AS (
        SELECT request_id, arg_max(value, seq) AS label, arg_max(event_time, seq) AS label_time FROM label
        WHERE model = $model AND "row" = 0 AND event_time <= $known GROUP BY 1
    )
    SELECT request_id, event_time, inputs, slices, features, label, label_time
    FROM asked JOIN answered USING (request_id) JOIN truth USING (request_id)
    ORDER BY event_time DESC, request_id LIMIT $most
"""


_SAMPLED = """
    SELECT avg((inputs IS NOT NULL)::INT) FROM assignment
    WHERE model = $model AND NOT duplicate AND event_time > $after AND event_time <= $until
"""


class Logged(NamedTuple):
    """Logged requests in order of time: the frame (event_timestamp and inputs), features as read, truths, slices."""

    frame: pa.Table
    features: FeatureColumns
    label: Vector
    label_time: pa.ChunkedArray
    slices: list[dict[str, str]]


def backtest(settings: Settings, rollout: Rollout) -> dict[str, pa.Table]:
    """`assignments`, `responses`, `labels`, `kpi` of the rollout's backtest stage.

    Without enough to judge, all are empty and the schema metadata of `assignments` has the reason (`no_data_reason`).
    """
    policy = Policy.parse(rollout.plan.policy)
    if rollout.champion is None:
        return _nothing(policy, "there is no champion to compare with")
    stage = rollout.current
    least = stage.requests or LEAST
    arms = {
        "champion": load_release(settings, rollout.champion),
        "challenger": load_release(settings, rollout.challenger),
    }
    after_us = max(int(release.manifest.training.get("last_label_us", 0)) for release in arms.values())
    until_us = rollout.created_event_us - round(policy.label_maturity_s * 1_000_000)
    logged, share = _read(settings, rollout, after_us, until_us)
    sampled = f"; payloads of {share:.1%} of the requests are logged" if share < 1 else ""
    if logged is None:
        return _nothing(policy, f"the inference log has no answered requests with labels{sampled}")
    kept, missing = _with_all_inputs(logged, arms)
    count = kept.frame.num_rows
    if count < least:
        since = f"after {from_us(after_us).isoformat(timespec='minutes')} with a matured label"
        reason = f"{count} logged requests {since}, {least} are needed{sampled}"
        return _nothing(policy, f"{reason}; the log lacks {missing}" if missing else reason)
    scores = {arm: _score(settings, release, kept) for arm, release in arms.items()}
    return _tables(policy, stage.name, kept, scores)


def no_data_reason(tables: Mapping[str, pa.Table]) -> str | None:
    """Why a backtest has nothing to judge; None when it has."""
    reason = (tables["assignments"].schema.metadata or {}).get(NO_DATA)
    return reason.decode() if reason is not None else None


def _read(settings: Settings, rollout: Rollout, after_us: int, until_us: int) -> tuple[Logged | None, float]:
    """The requests whose payload is logged, None without any, and their share of all."""
    lake = open_lake(settings)
    kinds = ("assignment", "response", "label")
    if not all(lake.exists(f"inference/{kind}") for kind in kinds):
        return None, 1.0
    with connect() as connection:
        for kind in kinds:
            lake.bind(connection, kind, f"inference/{kind}")
        given = {
            "model": rollout.model,
            "after": from_us(after_us),
            "until": from_us(until_us),
            "known": from_us(rollout.created_event_us),
            "most": MOST,
        }
        rows = connection.execute(_LOGGED, given).fetch_arrow_table()
        among = {name: given[name] for name in ("model", "after", "until")}
        (share,) = connection.execute(_SAMPLED, among).fetchone() or (None,)
    share = 1.0 if share is None else float(share)
    rows = rows.sort_by([("event_time", "ascending"), ("request_id", "ascending")])
    if not rows.num_rows:
        return None, share
    inputs = [_first_row(text) for text in rows.column("inputs").to_pylist()]
    reads = [_reads(texts) for texts in rows.column("features").to_pylist()]
    frame = {"event_timestamp": rows.column("event_time").cast(_STAMP)}
    for name in sorted({name for row in inputs for name in row}):
        frame[name] = pa.chunked_array([_array([row.get(name) for row in inputs])])
    known = [key for key in reads[0] if all(key in row for row in reads)]
    features = {key: np.array([_number(row[key]) for row in reads]) for key in known}
    logged = Logged(
        pa.table(frame),
        features,
        rows.column("label").to_numpy(),
        rows.column("label_time").cast(_STAMP),
        [dict(msgspec.json.decode(text)) if text else {} for text in rows.column("slices").to_pylist()],
    )
    return logged, share


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


def _with_all_inputs(logged: Logged, arms: Mapping[str, Release]) -> tuple[Logged, str]:
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


def _score(settings: Settings, release: Release, logged: Logged) -> Vector:
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


def _tables(policy: Policy, stage: str, logged: Logged, scores: Mapping[str, Vector]) -> dict[str, pa.Table]:
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
    return {
        "assignments": assignments,
        "responses": pa.concat_tables(responses),
        "labels": labels,
        "kpi": pa.table({"request_id": number[:0], "ts": times.slice(0, 0), "value": pa.array([], pa.float64())}),
    }


def _nothing(policy: Policy, reason: str) -> dict[str, pa.Table]:
    empty = pa.table({"event_timestamp": pa.array([], _STAMP)})
    logged = Logged(empty, {}, np.empty(0), pa.chunked_array([pa.array([], _STAMP)]), [])
    tables = _tables(policy, "backtest", logged, {"champion": np.empty(0), "challenger": np.empty(0)})
    tables["assignments"] = tables["assignments"].replace_schema_metadata({NO_DATA: reason.encode()})
    return tables


def _array(values: list[Any]) -> pa.Array:
    """One Arrow column; integers among floats become floats."""
    if any(isinstance(value, float) for value in values):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array(values)


def _number(value: Any) -> float:
    return np.nan if value is None else float(value)
