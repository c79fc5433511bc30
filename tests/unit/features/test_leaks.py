"""Nothing that could not be known at a request reaches its features.

For 200 random requests a view: every raw row that could not have been read online by then is deleted, the view is
recomputed from what is left, and the value must equal the one that the published view gives for the request.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipelines.adapters.delta_lake import connect
from pipelines.contracts.clocks import parse_event_time
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import point_in_time
from tests.leak_oracle import Row, expose, given, load_raw, recomputed

SEED = 20130101
REQUESTS = 200
FEWER = 60
FIRST, LAST = parse_event_time("2013-01-10T00:00:00Z"), parse_event_time("2013-01-21T12:00:00Z")
INCLUDE = PROJECT / "include"
VIEWS = names(INCLUDE, "features")


@pytest.fixture(scope="module")
def raw(sample_lake: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the raw rows of every dataset in memory, as `raw <dataset>`."""
    with connect() as connection:
        load_raw(connection, sample_lake, parse_event_time("2013-01-22T00:00:00Z"))
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
    until_us = LAST + 86_400_000_000
    expose(connection, spec, until_us=until_us, cut_us=None)
    return given(connection, spec, engine.rows(connection, include, spec, Span(None, until_us), created_us=0), asked)


def _differences(
    connection: duckdb.DuckDBPyConnection, include: Path, view: str, requests: int = REQUESTS
) -> tuple[int, int]:
    """(requests whose features differ, requests that have any feature)."""
    spec = load_view(include, view)
    asked = _requests(connection, spec)[:requests]
    published = _published(connection, include, spec, asked)
    ended = recomputed(connection, include, spec, asked)
    differ = sum(one != other for one, other in zip(published, ended, strict=True))
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
