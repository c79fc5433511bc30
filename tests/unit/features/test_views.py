"""Building and publishing views: increments equal a full build, bad rows reach nobody, online equals point-in-time."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import open_online
from pipelines.contracts.clocks import from_us, parse_event_time
from pipelines.contracts.errors import ContractError, DataError, NotYetError
from pipelines.contracts.release import ViewPin
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.features.online_layout import key_encoder, stored_seconds, value_encoder
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_view, names
from pipelines.wiring import features, point_in_time

INCLUDE = PROJECT / "include"
VIEWS = names(INCLUDE, "features")
HOUR_US = 3_600_000_000
UNTIL = parse_event_time("2013-01-21T12:00:00Z")


def _sorted(table: pa.Table, spec_keys: list[str]) -> pa.Table:
    columns = [name for name in table.column_names if name != "created_timestamp"]
    return table.select(columns).sort_by([("event_timestamp", "ascending"), *((key, "ascending") for key in spec_keys)])


@pytest.mark.parametrize("view", VIEWS)
def test_increments_equal_one_full_build(sample_views: Settings, view: str) -> None:
    spec = load_view(INCLUDE, view)
    stored = DeltaLake(sample_views.lake).read(features.table_of(spec.feast_name(INCLUDE)))
    full = features.compute(sample_views, spec, Span(None, UNTIL), created_us=UNTIL)
    keys = list(spec.entity.keys)
    assert stored.num_rows > 100
    assert _sorted(stored, keys).to_pylist() == _sorted(full.select(stored.column_names), keys).to_pylist()


@pytest.fixture
def fresh(tmp_path: Path, sample_lake: Settings) -> Settings:
    """A home with the sample's datasets and no views yet."""
    (tmp_path / "home" / "lake").mkdir(parents=True)
    (tmp_path / "home" / "lake" / "datasets").symlink_to(sample_lake.lake / "datasets")
    return Settings(home=tmp_path / "home", clock="replay")


def test_a_build_reaches_as_far_as_its_data_and_repeating_it_changes_nothing(fresh: Settings) -> None:
    far = parse_event_time("2014-06-01T00:00:00Z")
    ref = features.build(fresh, "carrier_punctuality", far)
    assert from_us(ref.until_us).isoformat() == "2013-01-22T01:00:00+00:00"  # the data end at midnight
    first = features.publish(fresh, ref)
    assert first.rows == ref.rows > 0
    late = features.publish(fresh, ref)
    assert (late.rows, late.delta_version) == (0, first.delta_version)
    again = features.build(fresh, "carrier_punctuality", far)
    assert again.empty
    assert features.publish(fresh, again).delta_version == first.delta_version


def test_a_build_without_its_dataset_names_the_dag_to_run(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, clock="replay")
    with pytest.raises(NotYetError, match=r"never published.*dataset\.weather") as build:
        features.build(settings, "weather_at_origin", UNTIL)
    with pytest.raises(NotYetError, match=r"features\.weather_at_origin"):
        features.materialise(settings, "weather_at_origin", UNTIL)
    assert build.value.retryable, "in a new installation the dataset's own run is under way"


def _damaged(include: Path, view: str, change: Callable[[str], str]) -> Path:
    shutil.copytree(INCLUDE, include, ignore=shutil.ignore_patterns("__pycache__"))
    file = include / "transforms" / f"{view}.py"
    file.write_text(change(file.read_text()))
    return include


def test_rows_outside_their_bounds_are_never_published_and_what_is_online_stays(
    fresh: Settings, tmp_path: Path
) -> None:
    day = parse_event_time("2013-01-10T00:00:00Z")
    good = features.refresh(fresh, "weather_at_origin", day)
    include = _damaged(
        tmp_path / "include",
        "weather_at_origin",
        lambda text: text.replace("temp=newest.temp", "temp=newest.temp * 100"),
    )
    bad = fresh.model_copy(update={"include_dir": include})
    ref = features.build(bad, "weather_at_origin", day)
    with pytest.raises(DataError, match=r"rows fail their checks.*temp is below -40 or above 130"):
        features.check(bad, ref)
    assert not DeltaLake(bad.lake).exists(features.table_of(ref.version))
    with open_online(fresh) as online:
        assert online.through_us(good.version) == good.through_us


def test_two_rows_of_one_key_and_time_are_refused(fresh: Settings, tmp_path: Path) -> None:
    doubled = "newest = newest.union(newest)\n    last_3h ="
    include = _damaged(tmp_path / "include", "weather_at_origin", lambda text: text.replace("last_3h =", doubled))
    bad = fresh.model_copy(update={"include_dir": include})
    ref = features.build(bad, "weather_at_origin", parse_event_time("2013-01-10T00:00:00Z"))
    with pytest.raises(DataError, match="duplicate"):
        features.check(bad, ref)


def test_a_transform_that_lacks_a_column_or_breaks_is_told(fresh: Settings, tmp_path: Path) -> None:
    include = _damaged(tmp_path / "one", "weather_at_origin", lambda text: text.replace("visib=newest.visib,", ""))
    with pytest.raises(ContractError, match="lacks column visib"):
        features.build(fresh.model_copy(update={"include_dir": include}), "weather_at_origin", UNTIL)
    include = _damaged(
        tmp_path / "two", "weather_at_origin", lambda text: text.replace("weather.temp.", "weather.tempp.")
    )
    with pytest.raises(ContractError, match="tempp"):
        features.build(fresh.model_copy(update={"include_dir": include}), "weather_at_origin", UNTIL)


def test_publication_stamps_are_the_next_step_and_one_more() -> None:
    from pipelines.adapters.delta_lake import connect

    sql = engine.available_at_sql(HOUR_US, "t")
    with connect() as connection:
        rows = connection.execute(
            f"SELECT {sql} FROM (VALUES (TIMESTAMP '2013-01-01 10:20:00'), (TIMESTAMP '2013-01-01 10:00:00'), "
            "(TIMESTAMP '2013-01-01 10:00:00.000001')) AS v(t)"
        ).fetchall()
    assert [row[0].isoformat() for row in rows] == ["2013-01-01T12:00:00", "2013-01-01T11:00:00", "2013-01-01T12:00:00"]


@pytest.mark.parametrize(
    ("as_of", "complete", "expected"), [(10.0, [20, 30], 10.0), (25.5, [20.5, 30], 21), (25.5, [25.5], 25.5)]
)
def test_the_horizon_is_event_now_or_one_step_behind_the_data(
    as_of: float, complete: list[float], expected: float
) -> None:
    spec = load_view(INCLUDE, "weather_at_origin")
    hours = [int(hour * HOUR_US) for hour in complete]
    assert engine.horizon_us(spec, int(as_of * HOUR_US), hours) == int(expected * HOUR_US)


def _online_row(
    settings: Settings, version: str, view: str, key: dict[str, str]
) -> tuple[int, dict[str, bytes]] | None:
    spec = load_view(INCLUDE, view)
    order, encode = key_encoder(spec.entity.keys)
    with sqlite3.connect(settings.feast_dir / "online_store.db") as connection:
        rows = connection.execute(
            f'SELECT feature_name, value, event_ts FROM "slipway_{version}" WHERE entity_key = ?',
            (encode([key[name] for name in order]),),
        ).fetchall()
    return (rows[0][2], {name: value for name, value, _ in rows}) if rows else None


def test_at_every_tick_online_equals_point_in_time(sample_views: Settings, tmp_path: Path) -> None:
    settings = sample_views.model_copy(update={"home": tmp_path})
    (tmp_path / "lake").symlink_to(sample_views.lake)
    settings = Settings(home=tmp_path, clock="replay")
    keys = {
        "carrier_punctuality": [{"carrier": carrier} for carrier in ("UA", "B6", "HA", "OO")],
        "route_punctuality": [
            {"origin": "EWR", "dest": "LAX"},
            {"origin": "LGA", "dest": "ATL"},
            {"origin": "JFK", "dest": "BQN"},
        ],
        "weather_at_origin": [{"origin": "JFK"}],
        "congestion_at_origin": [{"origin": "LGA"}],
        "plane": [{"tailnum": "N14228"}, {"tailnum": "N39463"}, {"tailnum": "none"}],
    }
    compared = 0
    with features.Publisher(settings) as publisher:
        for hour in (0, 1, 2, 3, 9, 10, 30, 31, 55):
            now = parse_event_time("2013-01-18T10:00:00Z") + hour * HOUR_US
            publisher.tick(now)
            for view, asked in keys.items():
                spec = load_view(INCLUDE, view)
                version = spec.feast_name(INCLUDE)
                entity = pa.table(
                    {name: [key[name] for key in asked] for name in spec.entity.keys}
                    | {"event_timestamp": pa.array([now] * len(asked), pa.int64()).cast(pa.timestamp("us", "UTC"))}
                )
                pin = ViewPin(
                    view=version,
                    entity={name: name for name in spec.entity.keys},
                    join_key_types=dict(spec.entity.keys),
                    features=list(spec.features),
                )
                known = point_in_time.historical(settings, entity, [pin], stamps=True).to_pylist()
                for key, row in zip(asked, known, strict=True):
                    stamp = row[f"{version}__event_timestamp"]
                    found = _online_row(settings, version, view, key)
                    if stamp is None:
                        assert found is None
                        continue
                    assert found is not None
                    assert found[0] == stored_seconds(int(stamp.timestamp() * 1_000_000))
                    assert found[1] == {
                        name: value_encoder(feature.type)(row[name]) for name, feature in spec.features.items()
                    }
                    compared += 1
    assert compared > 80


def test_materialising_again_or_backwards_writes_nothing(sample_views: Settings, tmp_path: Path) -> None:
    (tmp_path / "lake").symlink_to(sample_views.lake)
    settings = Settings(home=tmp_path, clock="replay")
    first = features.materialise(settings, "plane", UNTIL)
    assert first.values > 10_000
    assert features.materialise(settings, "plane", UNTIL).values == 0
    assert features.materialise(settings, "plane", UNTIL - 100 * HOUR_US).values == 0


def test_a_publisher_takes_up_data_ahead_and_shows_none_of_it_early(tmp_path: Path, sample_cache: Path) -> None:
    (tmp_path / "cache").symlink_to(sample_cache / "cache")
    settings = Settings(home=tmp_path, clock="replay")
    start = parse_event_time("2013-01-03T12:00:00Z")
    with features.Publisher(settings, ["weather_at_origin"], ahead_us=48 * HOUR_US) as publisher:
        publisher.tick(start)
        version = load_view(INCLUDE, "weather_at_origin").feast_name(INCLUDE)
        lake = DeltaLake(settings.lake).version(features.table_of(version))
        for hour in range(1, 24):
            now = start + hour * HOUR_US
            assert publisher.tick(now) == 21  # three airports, seven features: nothing else has become due
            found = _online_row(settings, version, "weather_at_origin", {"origin": "JFK"})
            assert found is not None
            assert found[0] <= stored_seconds(now)
    assert DeltaLake(settings.lake).version(features.table_of(version)) == lake


def test_historical_features_keep_the_frame_and_expire_by_ttl(sample_views: Settings) -> None:
    pin = next(pin for pin in point_in_time.pins(sample_views, "air_time") if pin.view.startswith("route_punctuality"))
    times = ["2013-01-18T10:00:00Z", "2013-01-01T00:00:00Z", "2013-03-01T00:00:00Z", "2013-01-18T10:00:00Z"]
    entity = pa.table(
        {
            "n": [4, 3, 2, 1],
            "origin": ["EWR", "EWR", "EWR", None],
            "dest": ["LAX"] * 4,
            "event_timestamp": pa.array([parse_event_time(text) for text in times], pa.timestamp("us", "UTC")),
        }
    )
    answer = point_in_time.historical(sample_views, entity, [pin])
    assert answer.select(entity.column_names).equals(entity)
    values = answer.column("route_air_time_7d").to_pylist()
    assert values[0] == pytest.approx(340, abs=40)
    assert values[1:] == [None, None, None]  # before any landing, past the time to live, no key


def test_a_broken_reference_in_a_frame_is_told(sample_views: Settings) -> None:
    pin = point_in_time.pins(sample_views, "air_time")[0]
    with pytest.raises(ContractError, match="entity frame lacks column"):
        point_in_time.historical(
            sample_views, pa.table({"event_timestamp": pa.array([UNTIL], pa.timestamp("us", "UTC"))}), [pin]
        )


def test_the_files_of_a_build_are_gone_when_it_is_published(fresh: Settings) -> None:
    ref = features.build(fresh, "weather_at_origin", UNTIL)
    assert pq.read_metadata(ref.path).num_rows == ref.rows
    features.publish(fresh, ref)
    assert not Path(ref.path).exists()
