"""What we write into Feast's SQLite online store, Feast's own SDK reads back."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.adapters.feast_online import FeastOnline
from pipelines.contracts.clocks import to_us
from pipelines.features.publishing import Pending
from pipelines.spec.view import ViewSpec

NOON = to_us(datetime(2013, 7, 1, 12, tzinfo=UTC))
HOUR = 3_600_000_000


def _spec() -> ViewSpec:
    kinds = {"f64": "float64", "f32": "float32", "i64": "int64", "i32": "int32", "flag": "bool", "text": "string"}
    return ViewSpec.model_validate(
        {
            "name": "every_type",
            "owner": "o",
            "description": "d",
            "entity": {"name": "thing", "keys": {"name": "string", "number": "int64"}},
            "datasets": ["weather"],
            "transform": "weather_at_origin.py:build",
            "features": {name: {"type": kind} for name, kind in kinds.items()},
            "look_back": "1h event_time",
            "publish_every": "1h event_time",
            "freshness": "1h event_time",
        }
    )


def _rows(*rows: dict[str, Any]) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("number", pa.int64()),
            ("f64", pa.float64()),
            ("f32", pa.float32()),
            ("i64", pa.int64()),
            ("i32", pa.int32()),
            ("flag", pa.bool_()),
            ("text", pa.string()),
            ("event_timestamp", stamp),
            ("created_timestamp", stamp),
        ]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def _row(name: str, number: int, at_us: int, **values: Any) -> dict[str, Any]:
    return {"name": name, "number": number, "event_timestamp": at_us, "created_timestamp": at_us, **values}


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(path of the online store, function that reads rows of the view through the SDK)."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Bool, Float32, Float64, Int32, Int64, String

    folder = tmp_path_factory.mktemp("online")
    store = FeatureStore(
        config=RepoConfig(
            project="slipway",
            registry=str(folder / "registry.db"),
            provider="local",
            online_store={"type": "sqlite", "path": str(folder / "online_store.db")},
            offline_store={"type": "pipelines.adapters.feast_asof.AsofOfflineStore"},
            entity_key_serialization_version=3,
        )
    )
    name = Entity(name="name", join_keys=["name"], value_type=ValueType.STRING)
    number = Entity(name="number", join_keys=["number"], value_type=ValueType.INT64)
    types = {"f64": Float64, "f32": Float32, "i64": Int64, "i32": Int32, "flag": Bool, "text": String}
    view = FeatureView(
        name="every_type__0001",
        entities=[name, number],
        schema=[
            Field(name="name", dtype=String),
            Field(name="number", dtype=Int64),
            *(Field(name=feature, dtype=kind) for feature, kind in types.items()),
        ],
        source=FileSource(path=str(folder / "none.parquet"), timestamp_field="event_timestamp"),
    )
    store.apply([name, number, view])

    def ask(*entities: dict[str, Any]) -> dict[str, list[Any]]:
        features = [f"every_type__0001:{feature}" for feature in types]
        answer: dict[str, list[Any]] = store.get_online_features(features, list(entities)).to_dict(True)
        return answer

    return folder / "online_store.db", ask


def test_every_type_and_null_come_back_through_the_sdk(read: Any) -> None:
    path, ask = read
    rows = _rows(
        _row("EWR", 1, NOON, f64=1.5, f32=0.25, i64=-(2**60), i32=-7, flag=True, text="Zürich"),
        _row("JFK", -2, NOON, f64=-0.0, f32=None, i64=2**62, i32=2**31 - 1, flag=False, text=""),
        _row("LGA", 3, NOON),
    )
    with FeastOnline(path) as online:
        online.create("every_type__0001")
        online.write("every_type__0001", Pending(_spec(), rows).take(NOON), NOON)
    got = ask(
        {"name": "EWR", "number": 1},
        {"name": "JFK", "number": -2},
        {"name": "LGA", "number": 3},
        {"name": "X", "number": 1},
    )
    assert got["f64"] == [1.5, -0.0, None, None]
    assert got["f32"] == [0.25, None, None, None]
    assert got["i64"] == [-(2**60), 2**62, None, None]
    assert got["i32"] == [-7, 2**31 - 1, None, None]
    assert got["flag"] == [True, False, None, None]
    assert got["text"] == ["Zürich", "", None, None]
    assert got["f64__ts"][:2] == [NOON // 1_000_000] * 2


def test_only_the_newest_row_of_a_key_becomes_readable_and_an_older_one_never_overwrites_it(read: Any) -> None:
    path, ask = read
    history = _rows(
        _row("OLD", 1, NOON - HOUR, f64=1.0), _row("OLD", 1, NOON, f64=2.0), _row("OLD", 1, NOON + HOUR, f64=3.0)
    )
    pending = Pending(_spec(), history)
    with FeastOnline(path) as online:
        online.create("every_type__0001")
        taken = pending.take(NOON)
        assert len(taken) == 6  # one row of six features, though two rows were due
        online.write("every_type__0001", taken, NOON)
        assert ask({"name": "OLD", "number": 1})["f64"] == [2.0]
        online.write("every_type__0001", Pending(_spec(), history.slice(0, 1)).take(NOON), NOON - HOUR)
        assert ask({"name": "OLD", "number": 1})["f64"] == [2.0]
        assert online.through_us("every_type__0001") == NOON
        online.write("every_type__0001", pending.take(NOON + HOUR), NOON + HOUR)
        assert ask({"name": "OLD", "number": 1})["f64"] == [3.0]
        assert pending.left == 0


def test_a_write_that_fails_leaves_nothing_behind(read: Any) -> None:
    path, ask = read
    rows = Pending(_spec(), _rows(_row("TORN", 1, NOON, f64=1.0))).take(NOON)
    with FeastOnline(path) as online:
        online.create("every_type__0001")
        before = online.through_us("every_type__0001")
        with pytest.raises(Exception, match="bind"):
            online.write("every_type__0001", [*rows, (b"k", "f64", object(), None, 0, 0)], NOON + 5 * HOUR)  # type: ignore[list-item]  # wrong on purpose
        assert online.through_us("every_type__0001") == before
    assert ask({"name": "TORN", "number": 1})["f64"] == [None]
    assert Path(path).stat().st_size > 0
