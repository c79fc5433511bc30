"""What a request's features are in a world that ends with the request: whatever knows more than that has leaked.

For each request every raw row that could not have been read online by then is left out, the view is recomputed from the
rest, and the newest row of the request's keys is its answer. However the view's rows were made (by a build or a stream,
on either engine), the point-in-time join over them has to give the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.adapters.delta_lake import open_lake
from pipelines.features import asof, engine, expressions
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets

Row = dict[str, Any]


def load_raw(connection: duckdb.DuckDBPyConnection, settings: Settings, until_us: int) -> None:
    """The rows of every dataset that the lake has, known by a time, as `raw <dataset>`."""
    for name in names(settings.include_dir, "datasets"):
        if open_lake(settings).exists(datasets.table_of(name)):
            datasets.bind(settings, connection, name, until_us, as_name=f"lake view {name}")
            connection.execute(f'CREATE TABLE "raw {name}" AS SELECT * FROM "lake view {name}" ORDER BY known_at')


def expose(connection: duckdb.DuckDBPyConnection, spec: ViewSpec, until_us: int, cut_us: int | None) -> None:
    """Views of the raw rows; with a cut, without every row that was not readable by then.

    The cut is worked out here on its own: a row known at k is taken up at the next full step of the cadence, and is
    readable one step later.
    """
    step = spec.publish_every.us
    for name in spec.datasets:
        limit = "true"
        if cut_us is not None:
            last_known = cut_us // step * step - step
            limit = f"epoch_us(known_at) <= {last_known}"
        connection.execute(f'CREATE OR REPLACE VIEW "known {name}" AS SELECT * FROM "raw {name}" WHERE {limit}')
        engine.bind_available(connection, spec, f"known {name}", name, Span(None, until_us))


def given(connection: duckdb.DuckDBPyConnection, spec: ViewSpec, rows: pa.Table, asked: Sequence[Row]) -> list[Row]:
    """What the view's rows give for each request."""
    entity = pa.table(
        {key: [row[key] for row in asked] for key in spec.entity.keys}
        | {"event_timestamp": pa.array([row["at_us"] for row in asked], pa.timestamp("us", "UTC"))}
    )
    connection.register("published", rows)
    join = asof.ViewJoin(
        relation="published",
        keys={key: key for key in spec.entity.keys},
        features={name: name for name in spec.features},
        ttl_us=spec.ttl.us if spec.ttl else None,
    )
    answer = asof.join(connection, entity, "event_timestamp", [join])
    connection.unregister("published")
    return list(answer.select(list(spec.features)).to_pylist())


def recomputed(connection: duckdb.DuckDBPyConnection, include: Path, spec: ViewSpec, asked: Sequence[Row]) -> list[Row]:
    """The same from raw, request by request, each in a world that ends with it."""
    last = max(row["at_us"] for row in asked)
    expose(connection, spec, until_us=last, cut_us=last)
    query = expressions.compiled(connection, include, spec.transform, spec.datasets)
    columns = ", ".join(
        f'CAST("{name}" AS {engine.SQL_TYPES[feature.type]}) AS "{name}"' for name, feature in spec.features.items()
    )
    same = " AND ".join(f'"{key}" = ?' for key in spec.entity.keys)
    answers = []
    for row in asked:
        at = row["at_us"]
        expose(connection, spec, until_us=at, cut_us=at)
        oldest = at - spec.ttl.us if spec.ttl else 0
        found = (
            connection.execute(
                f"SELECT {columns} FROM ({query}) WHERE {same} AND epoch_us(event_timestamp) BETWEEN {oldest} AND {at} "
                "ORDER BY event_timestamp DESC LIMIT 1",
                [row[key] for key in spec.entity.keys],
            )
            .fetch_arrow_table()
            .to_pylist()
        )
        answers.append(found[0] if found else dict.fromkeys(spec.features))
    return answers


def requests_near(spec: ViewSpec, rows: pa.Table, count: int, within_us: int) -> list[Row]:
    """Random requests: keys of the view's rows, each up to some time after one of them."""
    draw = random.Random(f"requests {spec.name}")
    keys = rows.select([*spec.entity.keys, "event_timestamp"]).to_pylist()
    stamps = rows.column("event_timestamp").cast(pa.int64()).to_pylist()
    there = [at for at, row in enumerate(keys) if None not in row.values()]
    picked = draw.choices(there, k=count)
    return [
        {**{key: keys[at][key] for key in spec.entity.keys}, "at_us": stamps[at] + draw.randrange(within_us)}
        for at in picked
    ]
