"""AsofOfflineStore against a brute-force oracle, through Feast's own interface."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.features import asof
from tests.asof_oracle import brute_force

BASE = datetime(2013, 3, 9, 22, tzinfo=UTC)  # the night New York's clocks change
MINUTE_US = 60_000_000


def _minute(value: int | None) -> datetime | None:
    return None if value is None else BASE + timedelta(minutes=value)


keys = st.sampled_from(["a", "b", None])
minutes = st.integers(0, 12)
entity_rows = st.lists(st.fixed_dictionaries({"k": keys, "t": st.one_of(minutes, st.none())}), min_size=1, max_size=8)
feature_rows = st.lists(
    st.fixed_dictionaries({"k": keys, "t": st.one_of(minutes, st.none()), "created": st.integers(0, 20)}), max_size=14
)


@given(entity_rows, feature_rows, st.sampled_from([None, 0, 1, 5]), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_join_agrees_with_brute_force(
    entity: list[dict[str, Any]], rows: list[dict[str, Any]], ttl: int | None, cutoff: bool
) -> None:
    seen = set()
    unique = []
    for index, row in enumerate(rows):  # rows equal in keys, time and creation have no defined winner
        if (row["k"], row["t"], row["created"]) not in seen:
            seen.add((row["k"], row["t"], row["created"]))
            unique.append({**row, "value": float(index)})
    stamp = pa.timestamp("us", tz="UTC")
    frame = pa.table(
        {
            "n": pa.array(range(len(entity)), pa.int64()),
            "k": pa.array([row["k"] for row in entity], pa.string()),
            "event_timestamp": pa.array([_minute(row["t"]) for row in entity], stamp),
        }
    )
    features = pa.table(
        {
            "key": pa.array([row["k"] for row in unique], pa.string()),
            "event_timestamp": pa.array([_minute(row["t"]) for row in unique], stamp),
            "created_timestamp": pa.array([_minute(row["created"]) for row in unique], stamp),
            "value": pa.array([row["value"] for row in unique], pa.float64()),
        }
    )
    with connect() as connection:
        connection.register("f", features)
        join = asof.ViewJoin(
            relation="f", keys={"key": "k"}, features={"value": "v"}, ttl_us=ttl * MINUTE_US if ttl else ttl
        )
        answer = asof.join(connection, frame, "event_timestamp", [join], created_cutoff=cutoff)
    assert answer.column("n").to_pylist() == list(range(len(entity)))
    assert answer.column("v").to_pylist() == brute_force(entity, unique, ttl, cutoff)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Feast repository of two views over Parquet and Delta, read by our store by its class path."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.data_format import DeltaFormat
    from feast.types import Float64, Int64, String

    folder = tmp_path_factory.mktemp("feast")
    carriers = pd.DataFrame(
        {
            "carrier": ["AA", "AA", "AA", "UA", "UA"],
            "stamp": pd.to_datetime(
                ["2013-01-01 01:00", "2013-01-01 02:00", "2013-01-01 02:00", "2013-01-01 01:30", "2013-01-03 00:00"]
            ),
            "made": pd.to_datetime(
                ["2013-01-01 00:00", "2013-01-01 02:00", "2013-01-01 05:00", "2013-01-01 00:00", "2013-01-03 00:00"]
            ),
            "rate_raw": [0.1, 0.2, 0.3, 0.4, 0.5],
        }
    )
    carriers.to_parquet(folder / "carriers.parquet")
    routes = pa.table(
        {
            "origin": ["EWR", "EWR", "JFK"],
            "dest": ["LAX", "LAX", "LAX"],
            "event_timestamp": pa.array(
                [BASE - timedelta(days=70, hours=i) for i in range(3)], pa.timestamp("us", "UTC")
            ),
            "rate": [7.0, 8.0, 9.0],
            "flights": [1, 2, 3],
        }
    )
    DeltaLake(folder).append("routes", routes)
    store = FeatureStore(
        config=RepoConfig(
            project="test",
            registry=str(folder / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store={"type": "pipelines.adapters.feast_asof.AsofOfflineStore"},
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
    entities = {
        name: Entity(name=name, join_keys=[name], value_type=ValueType.STRING) for name in ("carrier", "origin", "dest")
    }
    carrier_view = FeatureView(
        name="carrier_view",
        entities=[entities["carrier"]],
        schema=[Field(name="carrier", dtype=String), Field(name="rate", dtype=Float64)],
        source=FileSource(
            path="carriers.parquet",
            timestamp_field="stamp",
            created_timestamp_column="made",
            field_mapping={"rate_raw": "rate"},
        ),
        ttl=timedelta(days=1, hours=6),
    )
    route_view = FeatureView(
        name="route_view",
        entities=[entities["origin"], entities["dest"]],
        schema=[
            Field(name="origin", dtype=String),
            Field(name="dest", dtype=String),
            Field(name="rate", dtype=Float64),
            Field(name="flights", dtype=Int64),
        ],
        source=FileSource(path=str(folder / "routes"), file_format=DeltaFormat(), timestamp_field="event_timestamp"),
        ttl=timedelta(0),
    )
    store.apply([*entities.values(), carrier_view, route_view])
    store.folder = folder
    yield store
    store.teardown()


def _times(*texts: str) -> pd.Series[Any]:
    return pd.Series(pd.to_datetime(list(texts), format="ISO8601", utc=True))


def _frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_ties_go_to_the_row_created_last_and_old_rows_expire(store: Any) -> None:
    asked = _frame(
        carrier=["AA", "AA", "AA", "UA", "UA", "ZZ", None],
        event_timestamp=_times(
            "2013-01-01 00:59",  # before the first row
            "2013-01-01 02:00",  # at the tie
            "2013-01-02 08:00:01",  # one second past the TTL of 1 day 6 hours
            "2013-01-02 07:30",  # exactly at its edge
            "2013-01-02 07:31",
            "2013-01-02",
            "2013-01-02",
        ),
    )
    answer = store.get_historical_features(asked, ["carrier_view:rate"]).to_df()
    assert answer["rate"].isna().tolist() == [True, False, True, False, True, True, True]
    assert answer["rate"].dropna().tolist() == [0.3, 0.4]


def test_duplicate_entity_rows_come_back_each_in_its_place(store: Any) -> None:
    moment = pd.Timestamp("2013-01-01 03:00")
    asked = _frame(carrier=["UA", "AA", "UA", "UA"], event_timestamp=[moment] * 4, n=[4, 3, 2, 1])
    answer = store.get_historical_features(asked, ["carrier_view:rate"]).to_df()
    assert answer["n"].tolist() == [4, 3, 2, 1]
    assert answer["rate"].tolist() == [0.4, 0.3, 0.4, 0.4]


def test_two_views_with_full_names_keep_their_equal_feature_names_apart(store: Any) -> None:
    asked = _frame(
        carrier=["AA"], origin=["EWR"], dest=["LAX"], event_timestamp=[pd.Timestamp("2013-01-01 03:00", tz="UTC")]
    )
    answer = store.get_historical_features(
        asked, ["carrier_view:rate", "route_view:rate"], full_feature_names=True
    ).to_df()
    assert answer["carrier_view__rate"].tolist() == [0.3]
    assert answer["route_view__rate"].tolist() == [7.0]


def test_the_same_view_joins_twice_under_other_keys(store: Any) -> None:
    from feast import FeatureService

    view = store.get_feature_view("carrier_view")
    service = FeatureService(
        name="pair",
        features=[
            view.with_name("first").with_join_key_map({"carrier": "first_carrier"}),
            view.with_name("second").with_join_key_map({"carrier": "second_carrier"}),
        ],
    )
    store.apply([service])
    asked = _frame(
        first_carrier=["AA", "UA"], second_carrier=["UA", None], event_timestamp=[pd.Timestamp("2013-01-01 03:00")] * 2
    )
    answer = store.get_historical_features(asked, service, full_feature_names=True).to_df()
    assert answer["first__rate"].tolist() == [0.3, 0.4]
    assert answer["second__rate"].fillna(-1).tolist() == [0.4, -1]


def test_only_rows_created_by_then_count_when_asked_so(store: Any) -> None:
    asked = _frame(carrier=["AA", "AA"], event_timestamp=pd.to_datetime(["2013-01-01 03:00", "2013-01-01 05:00"]))
    answer = store.get_historical_features(asked, ["carrier_view:rate"], filter_by_created_timestamp=True).to_df()
    assert answer["rate"].tolist() == [0.2, 0.3]


def test_an_entity_frame_may_be_sql_and_an_empty_one_gives_an_empty_answer(store: Any) -> None:
    sql = "SELECT 'AA' AS carrier, TIMESTAMP '2013-01-01 03:00' AS event_timestamp"
    assert store.get_historical_features(sql, ["carrier_view:rate"]).to_df()["rate"].tolist() == [0.3]
    nothing = store.get_historical_features(f"{sql} WHERE false", ["carrier_view:rate"]).to_arrow()
    assert nothing.num_rows == 0
    assert nothing.column_names == ["carrier", "event_timestamp", "rate"]


def test_without_an_entity_frame_every_row_of_the_span_is_asked_for(store: Any) -> None:
    answer = store.get_historical_features(
        None,
        ["carrier_view:rate"],
        start_date=datetime(2013, 1, 1, tzinfo=UTC),
        end_date=datetime(2013, 1, 2, tzinfo=UTC),
    ).to_df()
    assert answer["rate"].tolist() == [0.1, 0.3, 0.4]


def test_the_newest_row_of_each_key_is_pulled_from_a_span(store: Any) -> None:
    from pipelines.adapters.feast_asof import AsofOfflineStore

    view = store.get_feature_view("carrier_view")
    arguments = (store.config, view.batch_source, ["carrier"], ["rate_raw"], "stamp", "made")
    span = (datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 2, tzinfo=UTC))
    latest = AsofOfflineStore.pull_latest_from_table_or_query(*arguments, *span).to_df()
    assert dict(zip(latest["carrier"], latest["rate_raw"], strict=True)) == {"AA": 0.3, "UA": 0.4}
    everything = AsofOfflineStore.pull_all_from_table_or_query(*arguments).to_df()
    assert len(everything) == 5


def test_rows_are_appended_to_the_source_and_wrong_columns_refused(store: Any, tmp_path: Path) -> None:
    from pipelines.adapters.feast_asof import AsofOfflineStore

    view = store.get_feature_view("route_view")
    row = pa.table(
        {
            "origin": ["LGA"],
            "dest": ["ATL"],
            "event_timestamp": pa.array([BASE], pa.timestamp("us", "UTC")),
            "rate": [1.5],
            "flights": pa.array([4], pa.int64()),
        }
    )
    AsofOfflineStore.offline_write_batch(store.config, view, row, None)
    asked = _frame(origin=["LGA"], dest=["ATL"], event_timestamp=[BASE])
    assert store.get_historical_features(asked, ["route_view:rate"]).to_df()["rate"].tolist() == [1.5]
    with pytest.raises(ValueError, match="columns"):
        AsofOfflineStore.offline_write_batch(store.config, view, row.drop_columns(["rate"]), None)


@pytest.mark.filterwarnings("ignore:.*dataset.* is an experimental feature:RuntimeWarning")
def test_an_answer_is_kept_as_a_saved_dataset_and_not_overwritten(store: Any, tmp_path: Path) -> None:
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    asked = _frame(carrier=["AA"], event_timestamp=[pd.Timestamp("2013-01-01 03:00", tz="UTC")])
    job = store.get_historical_features(asked, ["carrier_view:rate"])
    storage = SavedDatasetFileStorage(str(tmp_path / "kept.parquet"))
    store.create_saved_dataset(from_=job, name="kept", storage=storage)
    assert store.get_saved_dataset("kept").to_df()["rate"].tolist() == [0.3]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(from_=job, name="kept", storage=storage)


def test_expired_rows_keep_their_entity_rows_and_their_types(store: Any) -> None:
    asked = _frame(carrier=["AA"] * 3, event_timestamp=[pd.Timestamp("2014-06-01")] * 3)
    answer = store.get_historical_features(asked, ["carrier_view:rate"]).to_df()
    assert len(answer) == 3
    assert answer["rate"].isna().all()
    assert answer["rate"].dtype == np.float64
