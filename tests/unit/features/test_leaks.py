"""Nothing that could not be known at a request reaches its features.

For 200 random requests a view: every raw row that could not have been read online by then is deleted, the view is
recomputed from what is left, and the value must equal the one that the published view gives for the request.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipelines.adapters.delta_lake import connect
from pipelines.contracts.clocks import parse_event_time
from pipelines.features import engine, expressions
from pipelines.features.engine import Span
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets, point_in_time

SEED = 20130101
REQUESTS = 200
FEWER = 60
FIRST, LAST = parse_event_time("2013-01-10T00:00:00Z"), parse_event_time("2013-01-21T12:00:00Z")
INCLUDE = PROJECT / "include"
VIEWS = names(INCLUDE, "features")

Row = dict[str, Any]


@pytest.fixture(scope="module")
def raw(sample_lake: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the raw rows of every dataset in memory, as `raw <dataset>`."""
    with connect() as connection:
        for name in names(INCLUDE, "datasets"):
            datasets.bind(
                sample_lake, connection, name, parse_event_time("2013-01-22T00:00:00Z"), as_name=f"lake view {name}"
            )
            connection.execute(f'CREATE TABLE "raw {name}" AS SELECT * FROM "lake view {name}" ORDER BY known_at')
            connection.execute(f'CREATE VIEW "known {name}" AS SELECT * FROM "raw {name}"')
        yield connection


def _requests(connection: duckdb.DuckDBPyConnection, spec: ViewSpec) -> list[Row]:
    """Random requests of the sample, an hour before scheduled departure, with the view's keys and an odd second."""
    keys = ", ".join(f'"{key}"' for key in spec.entity.keys)
    rows = (
        connection.execute(
            f'SELECT {keys}, epoch_us(sched_dep) - 3600000000 AS at_us FROM "raw flights_scheduled" '
            f"WHERE epoch_us(sched_dep) - 3600000000 BETWEEN {FIRST} AND {LAST} ORDER BY flight_id"
        )
        .fetch_arrow_table()
        .to_pylist()
    )
    draw = random.Random(f"{SEED} {spec.name}")
    return [{**row, "at_us": row["at_us"] + draw.randrange(60_000_000)} for row in draw.sample(rows, REQUESTS)]


def _published(connection: duckdb.DuckDBPyConnection, include: Path, spec: ViewSpec, asked: list[Row]) -> list[Row]:
    """What the view, computed once from all raw rows as a build computes it, gives for each request."""
    from pipelines.features import asof

    _expose(connection, spec, until_us=LAST + 86_400_000_000, cut_us=None)
    rows = engine.rows(connection, include, spec, Span(None, LAST + 86_400_000_000), created_us=0)
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


def _expose(connection: duckdb.DuckDBPyConnection, spec: ViewSpec, until_us: int, cut_us: int | None) -> None:
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


def _recomputed(connection: duckdb.DuckDBPyConnection, include: Path, spec: ViewSpec, asked: list[Row]) -> list[Row]:
    """The same from raw, request by request, each in a world that ends with it."""
    _expose(connection, spec, until_us=LAST, cut_us=LAST)
    query = expressions.compiled(connection, include, spec.transform, spec.datasets)
    columns = ", ".join(
        f'CAST("{name}" AS {_sql(feature.type)}) AS "{name}"' for name, feature in spec.features.items()
    )
    same = " AND ".join(f'"{key}" = ?' for key in spec.entity.keys)
    answers = []
    for row in asked:
        at = row["at_us"]
        _expose(connection, spec, until_us=at, cut_us=at)
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


def _sql(kind: str) -> str:
    return engine.SQL_TYPES[kind]


def _differences(
    connection: duckdb.DuckDBPyConnection, include: Path, view: str, requests: int = REQUESTS
) -> tuple[int, int]:
    """(requests whose features differ, requests that have any feature)."""
    spec = load_view(include, view)
    asked = _requests(connection, spec)[:requests]
    published = _published(connection, include, spec, asked)
    recomputed = _recomputed(connection, include, spec, asked)
    differ = sum(one != other for one, other in zip(published, recomputed, strict=True))
    return differ, sum(any(value is not None for value in row.values()) for row in published)


@pytest.mark.parametrize("view", VIEWS)
def test_no_feature_knows_what_was_not_yet_readable(raw: duckdb.DuckDBPyConnection, view: str) -> None:
    differ, present = _differences(raw, INCLUDE, view)
    assert present > 0.75 * REQUESTS  # a test of nothing but nulls would be no test
    assert differ == 0


@pytest.fixture
def tampered(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """A copy of `include` in which one transform has a text replaced."""

    def tamper(view: str, old: str, new: str) -> Path:
        include = tmp_path / "include"
        shutil.copytree(INCLUDE, include, ignore=shutil.ignore_patterns("__pycache__"))
        file = include / "transforms" / f"{view}.py"
        source = file.read_text()
        assert old in source
        file.write_text(source.replace(old, new))
        return include

    return tamper


@pytest.mark.parametrize(
    ("view", "stamp"),
    [("carrier_punctuality", "counted.available_at"), ("weather_at_origin", "newest.available_at")],
)
def test_a_view_stamped_an_hour_early_is_caught(
    raw: duckdb.DuckDBPyConnection, tampered: Callable[[str, str, str], Path], view: str, stamp: str
) -> None:
    early = f"event_timestamp={stamp} - ibis.interval(hours=1)"
    differ, _ = _differences(raw, tampered(view, f"event_timestamp={stamp}", early), view, FEWER)
    assert differ > 0.1 * FEWER


def test_a_view_stamped_with_scheduled_times_is_caught(
    raw: duckdb.DuckDBPyConnection, tampered: Callable[[str, str, str], Path]
) -> None:
    by_schedule = 'tables["flights_landed"].mutate(available_at=lambda row: row.sched_dep)'
    include = tampered("carrier_punctuality", 'tables["flights_landed"]', by_schedule)
    differ, _ = _differences(raw, include, "carrier_punctuality", FEWER)
    assert differ > 0.5 * FEWER


def test_the_published_lake_gives_the_values_of_the_leak_test(
    raw: duckdb.DuckDBPyConnection, sample_views: Settings
) -> None:
    from pipelines.contracts.release import ViewPin

    for view in VIEWS:
        spec = load_view(INCLUDE, view)
        asked = _requests(raw, spec)
        entity = pa.table(
            {key: [row[key] for row in asked] for key in spec.entity.keys}
            | {"event_timestamp": pa.array([row["at_us"] for row in asked], pa.timestamp("us", "UTC"))}
        )
        pin = ViewPin(
            view=spec.feast_name(INCLUDE),
            entity={key: key for key in spec.entity.keys},
            join_key_types=dict(spec.entity.keys),
            features=list(spec.features),
            ttl_us=spec.ttl.us if spec.ttl else None,
        )
        stored = point_in_time.historical(sample_views, entity, [pin]).select(list(spec.features)).to_pylist()
        assert stored == _published(raw, INCLUDE, spec, asked), view
