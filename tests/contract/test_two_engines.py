"""One definition, two engines: a view gives the same rows on DuckDB and on Spark, and so does the join."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from pipelines.adapters import spark_join, spark_session
from pipelines.adapters.delta_lake import DeltaLake, connect, open_lake
from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import ViewPin
from pipelines.features import asof
from pipelines.features.engine import Span
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_view, names
from pipelines.wiring import datasets, features, point_in_time, streams
from pipelines.wiring.stream_state import frontier_us
from tests import odd_days, streamed_project
from tests.asof_oracle import brute_force
from tests.leak_oracle import given, load_raw, recomputed, requests_near
from tests.s3_server import S3Server
from tests.s3_tables import lake_on_s3
from tests.spark import lean_config

BASE = datetime.fromisoformat("2013-03-09T22:00:00Z")  # the night New York's clocks change
VIEWS = names(PROJECT / "include", "features")
REQUESTS = 30
WITHIN_US = 2 * 3_600_000_000
"""How long after a row of the view a request comes, at the most."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("odd")
    settings = Settings(home=home, clock="replay", spark_config=lean_config(home))
    odd_days.publish(settings)
    return settings


@cache
def computed(settings: Settings, view: str, engine: str, span: Span) -> pa.Table:
    spec = load_view(settings.include_dir, view).model_copy(update={"engine": engine})
    return features.compute(settings, spec, span, created_us=odd_days.END_US)


def both(settings: Settings, view: str, span: Span) -> tuple[pa.Table, pa.Table]:
    return computed(settings, view, "duckdb", span), computed(settings, view, "spark", span)


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_same_rows_on_both_engines(lake: Settings, view: str) -> None:
    on_duckdb, on_spark = both(lake, view, Span(None, odd_days.END_US))
    assert on_duckdb.num_rows > 100
    assert on_spark.schema.names == on_duckdb.schema.names
    assert on_spark.cast(on_duckdb.schema).to_pylist() == on_duckdb.to_pylist()


@pytest.fixture(scope="module")
def raw(lake: Settings) -> Iterator[duckdb.DuckDBPyConnection]:
    with connect() as connection:
        load_raw(connection, lake, odd_days.END_US)
        yield connection


@pytest.mark.parametrize("view", VIEWS)
def test_no_feature_on_spark_knows_what_was_not_yet_readable(
    lake: Settings, raw: duckdb.DuckDBPyConnection, view: str
) -> None:
    spec = load_view(lake.include_dir, view)
    rows = computed(lake, view, "spark", Span(None, odd_days.END_US))
    asked = requests_near(spec, rows, REQUESTS, WITHIN_US)
    answers = given(raw, spec, rows, asked)
    assert sum(any(value is not None for value in one.values()) for one in answers) > 0.75 * REQUESTS
    assert answers == recomputed(raw, lake.include_dir, spec, asked)


def test_a_view_stamped_an_hour_early_is_caught_on_spark(
    lake: Settings, raw: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    include = tmp_path / "include"
    shutil.copytree(lake.include_dir, include, ignore=shutil.ignore_patterns("__pycache__"))
    file = include / "transforms" / "weather_at_origin.py"
    stamp = "event_timestamp=newest.available_at"
    assert stamp in file.read_text()
    file.write_text(file.read_text().replace(stamp, f"{stamp} - ibis.interval(hours=1)"))
    early = lake.model_copy(update={"include_dir": include})
    spec = load_view(include, "weather_at_origin")
    rows = computed(early, "weather_at_origin", "spark", Span(None, odd_days.END_US))
    asked = requests_near(spec, rows, REQUESTS, WITHIN_US)
    assert given(raw, spec, rows, asked) != recomputed(raw, include, spec, asked)


@pytest.mark.parametrize("dataset", streamed_project.STREAMED)
def test_a_stream_on_spark_gives_what_a_build_gives_and_knows_nothing_early(
    lake: Settings, tmp_path: Path, dataset: str
) -> None:
    views = {view: fed for view, fed in streamed_project.BY_VIEW.items() if fed[0] == dataset}
    include = streamed_project.write(tmp_path, views, engine="spark")
    settings = lake.model_copy(update={"home": tmp_path / "home", "include_dir": include})
    odd_days.publish(settings, only={"planes", "flights_scheduled"})
    messages = streamed_project.messages(include, dataset)[:120]
    with streams.Feed(settings, dataset) as feed:
        feed.apply(messages[:80])
        feed.apply(messages[80:])
    newest = datasets.published_through(settings, dataset)
    assert newest is not None
    with connect() as connection:
        load_raw(connection, settings, odd_days.END_US)
        for view in views:
            spec = load_view(include, view).model_copy(update={"engine": "duckdb"})
            through_us = frontier_us(spec, newest)
            by_build = features.compute(settings, spec, Span(None, through_us), created_us=0)
            rows = pa.Table.from_pylist(streamed_project.latest(settings, view), by_build.schema)
            values = [name for name in rows.column_names if name != "created_timestamp"]
            assert rows.select(values).to_pylist() == by_build.select(values).to_pylist()
            asked = [one for one in requests_near(spec, rows, REQUESTS, WITHIN_US) if one["at_us"] <= through_us]
            assert given(connection, spec, rows, asked) == recomputed(connection, include, spec, asked), view


def test_an_increment_is_the_same_on_both_engines(lake: Settings) -> None:
    on_duckdb, on_spark = both(lake, "plane", Span(odd_days.MIDDLE_US, odd_days.END_US))
    assert on_duckdb.num_rows > 0
    assert on_spark.to_pylist() == on_duckdb.to_pylist()


def test_spark_reads_a_lake_on_s3_for_views_and_joins(lake: Settings, s3: S3Server, tmp_path: Path) -> None:
    with lake_on_s3(s3):
        # Spark runs already, and has not this server's keys in its environment.
        keys = tmp_path / "spark.properties"
        keys.write_text(f"spark.hadoop.fs.s3a.access.key={s3.access}\nspark.hadoop.fs.s3a.secret.key={s3.secret}\n")
        there = {"lake_uri": "s3://lake/odd", "lake_endpoint": s3.endpoint, "home": tmp_path}
        on_s3 = lake.model_copy(update={**there, "spark_config": str(keys)})
        odd_days.publish(on_s3, only={"flights_landed"})
        assert not on_s3.lake.exists()
        span = Span(None, odd_days.END_US)
        rows = computed(on_s3, "carrier_punctuality", "spark", span)
        assert rows.to_pylist() == computed(lake, "carrier_punctuality", "duckdb", span).to_pylist()
        spec = load_view(lake.include_dir, "carrier_punctuality")
        version = spec.feast_name(lake.include_dir)
        open_lake(on_s3).append(features.table_of(version), rows, partition_by=["day"])
        pin = ViewPin(view=version, entity={"carrier": "carrier"}, join_key_types={}, features=["landed_3h"])
        entity = rows.slice(0, 80).select(["carrier", "event_timestamp"])
        joined = point_in_time.historical(on_s3.model_copy(update={"engine": "spark"}), entity, [pin])
    assert joined.column("landed_3h").to_pylist() == rows.slice(0, 80).column("landed_3h").to_pylist()


def test_a_transform_without_a_declared_column_is_told(lake: Settings, tmp_path: Path) -> None:
    spec = load_view(lake.include_dir, "weather_at_origin")
    more = {**spec.features, "sunshine": spec.features["temp"]}
    with pytest.raises(ContractError, match="lacks column sunshine"):
        features.compute(lake, spec.model_copy(update={"engine": "spark", "features": more}), Span(None, 0), 0)


# --- the point-in-time join ---------------------------------------------------------------------------------------

KEYS = ("a", "b", None)
MINUTE_US = 60_000_000
CASES = 60


def at(minute: int | None) -> datetime | None:
    return None if minute is None else BASE + timedelta(minutes=minute)


def random_case(draw: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(entity rows, feature rows) with null keys, null times, ties and duplicates of entity rows."""
    minutes = [*range(13), None]
    entity = [{"k": draw.choice(KEYS), "t": draw.choice(minutes)} for _ in range(draw.randint(1, 8))]
    drawn = [(draw.choice(KEYS), draw.choice(minutes), draw.randrange(6)) for _ in range(draw.randrange(15))]
    # Rows equal in keys, time and creation have no defined winner.
    rows = [{"k": k, "t": t, "created": c, "value": float(n)} for n, (k, t, c) in enumerate(dict.fromkeys(drawn))]
    return entity, rows


@pytest.mark.parametrize(("ttl", "cutoff"), [(None, False), (5, False), (0, True), (1, True)])
def test_the_join_on_spark_agrees_with_brute_force(lake: Settings, ttl: int | None, cutoff: bool) -> None:
    cases = [random_case(random.Random(f"{ttl} {cutoff} {number}")) for number in range(CASES)]
    asked = [(number, row) for number, (entity, _) in enumerate(cases) for row in entity]
    held = [(number, row) for number, (_, rows) in enumerate(cases) for row in rows]
    stamp = pa.timestamp("us", tz="UTC")
    frame = pa.table(
        {
            "case": [number for number, _ in asked],
            "k": pa.array([row["k"] for _, row in asked], pa.string()),
            "event_timestamp": pa.array([at(row["t"]) for _, row in asked], stamp),
        }
    )
    features_ = pa.table(
        {
            "case": [number for number, _ in held],
            "key": pa.array([row["k"] for _, row in held], pa.string()),
            "event_timestamp": pa.array([at(row["t"]) for _, row in held], stamp),
            "created_timestamp": pa.array([at(row["created"]) for _, row in held], stamp),
            "value": [row["value"] for _, row in held],
        }
    )
    session = spark_session.session(lake)
    one = asof.ViewJoin(
        relation="f",
        keys={"case": "case", "key": "k"},
        features={"value": "v"},
        ttl_us=ttl * MINUTE_US if ttl else ttl,
        stamp_name="seen",
    )
    relations = {"f": session.createDataFrame(features_)}
    answer = spark_join.join(session, frame, "event_timestamp", [one], relations, created_cutoff=cutoff)
    expected = [value for entity, rows in cases for value in brute_force(entity, rows, ttl, cutoff)]
    assert answer.select(frame.column_names).equals(frame)  # every row once, in its place
    assert answer.column("v").to_pylist() == expected
    by_value = {(number, row["value"]): at(row["t"]) for number, row in held}
    stamps = [by_value.get((number, value)) for (number, _), value in zip(asked, expected, strict=True)]
    assert answer.column("seen").to_pylist() == stamps


def test_a_training_join_is_the_same_on_both_engines(lake: Settings) -> None:
    spec = load_view(lake.include_dir, "carrier_punctuality")
    version = spec.feast_name(lake.include_dir)
    rows = features.compute(lake, spec, Span(None, odd_days.END_US), created_us=odd_days.END_US)
    DeltaLake(lake.lake).append(features.table_of(version), rows, partition_by=["day"])
    pin = ViewPin(
        view=version,
        entity={"carrier": "line"},
        join_key_types=dict(spec.entity.keys),
        features=["late_rate_3h", "landed_3h"],
        ttl_us=spec.ttl.us if spec.ttl else None,
    )
    asked = rows.slice(0, 80)
    entity = pa.table({"line": asked.column("carrier"), "event_timestamp": asked.column("event_timestamp")})
    answers = [
        point_in_time.historical(lake.model_copy(update={"engine": engine}), frame, [pin], stamps=True)
        for engine in ("duckdb", "spark")
        for frame in (entity, entity.slice(0, 0))
    ]
    assert answers[0].column("landed_3h").null_count == 0
    assert answers[2].to_pylist() == answers[0].to_pylist()
    assert answers[3].schema.names == answers[1].schema.names
    assert answers[3].num_rows == 0
