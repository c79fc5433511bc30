"""Batch scores: what the champion says about every request that is announced and not yet asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import MICROS_UTC, connect, open_lake
from pipelines.contracts import batch_scores
from pipelines.contracts.batch_scores import BatchScore
from pipelines.contracts.clocks import from_us
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.wiring import datasets, scoring

STAMP = MICROS_UTC
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("event_timestamp", STAMP),
        ("score", pa.float64()),
        ("outputs", pa.string()),
        ("release", pa.string()),
        ("as_of", STAMP),
        ("day", pa.date32()),
    ]
)


class BatchScored(msgspec.Struct, frozen=True, kw_only=True):
    """What was scored. Without a champion nothing is, and that is no error: `scored` is false."""

    scored: bool
    release: str = ""
    rows: int = 0
    table: str = ""


def table_of(model: str) -> str:
    """The lake table of a model's batch scores, partitioned by `day` (UTC date of their `as_of`)."""
    return f"scores/{model}"


def score(settings: Settings, model: str, as_of_us: int) -> BatchScored:
    """Score the open requests with features as known at `as_of_us`; the scores replace those made earlier that day."""
    champion = control_db(settings).champion(model)
    if champion is None:
        return BatchScored(scored=False)
    release = scoring.load_release(settings, champion)
    requests = open_requests(settings, model, as_of_us)
    as_of = from_us(as_of_us)
    now = pa.array([as_of] * requests.num_rows, STAMP)
    column = requests.column_names.index("event_timestamp")
    scored = scoring.score_table(settings, release, requests.set_column(column, "event_timestamp", now))
    rows = pa.table(
        {
            "request_id": requests.column("request_id").cast(pa.string()),
            "event_timestamp": requests.column("event_timestamp"),
            "score": scoring.score_of(release, scored),
            "outputs": _json_rows(scored.outputs, requests.num_rows),
            "release": [champion] * requests.num_rows,
            "as_of": now,
            "day": [as_of.date()] * requests.num_rows,
        },
        schema=SCHEMA,
    )
    lake = open_lake(settings)
    where = f"day = '{as_of.date()}'" if lake.exists(table_of(model)) else None
    lake.replace(table_of(model), rows, partition_by=["day"], where=where)
    batch_scores.write(batch_scores.file_of(settings.root, model), _by_request(rows, release.manifest.semver, as_of_us))
    return BatchScored(scored=True, release=champion, rows=rows.num_rows, table=table_of(model))


def _by_request(rows: pa.Table, semver: str, as_of_us: int) -> Iterator[tuple[str, BatchScore]]:
    columns = (rows.column(name).to_pylist() for name in ("request_id", "outputs", "release"))
    for request_id, outputs, release in zip(*columns, strict=True):
        made = msgspec.json.decode(outputs)
        yield request_id, BatchScore(outputs=made, release=release, semver=semver, as_of_us=as_of_us)


def open_requests(settings: Settings, model: str, as_of_us: int) -> pa.Table:
    """Requests known at `as_of_us` that are asked later: `request_id`, `event_timestamp`, inputs; in order of time."""
    from pipelines.features.expressions import evaluate

    spec = load_model(settings.include_dir, model)
    with connect() as connection:
        for name in spec.requests.datasets:
            datasets.bind(settings, connection, name, as_of_us)
        rows = evaluate(connection, settings.include_dir, spec.requests.transform, spec.requests.datasets)
    at = rows.column("event_timestamp").cast(pa.timestamp("us")).cast(STAMP)
    rows = rows.set_column(rows.column_names.index("event_timestamp"), "event_timestamp", at)
    coming = rows.filter(pc.greater(at, pa.scalar(from_us(as_of_us), STAMP)))
    return coming.sort_by([("event_timestamp", "ascending"), ("request_id", "ascending")])


def _json_rows(outputs: dict[str, np.ndarray], rows: int) -> list[str]:
    """Each row's outputs by name as JSON text (NaN becomes null)."""
    listed: dict[str, list[Any]] = {name: np.asarray(values).tolist() for name, values in outputs.items()}
    return [msgspec.json.encode({name: values[row] for name, values in listed.items()}).decode() for row in range(rows)]
