"""What the Feast SDK materialises is what the gateway reads: every scalar type, several keys, missing entities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts.clocks import to_us
from pipelines.contracts.release import ViewPin
from serving.online_features.plan import ReadPlan
from serving.online_features.sqlite_store import SqliteStore

pytest.importorskip("feast", reason="the serving environment has no Feast; this runs in the other one")


def test_the_gateway_reads_what_the_feast_sdk_wrote_and_reads(tmp_path: Path) -> None:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Bool, Float32, Float64, Int32, Int64, String
    from feast.value_type import ValueType

    config = RepoConfig(
        project="slipway",
        registry=str(tmp_path / "registry.db"),
        provider="local",
        online_store={"type": "sqlite", "path": str(tmp_path / "online_store.db")},
        entity_key_serialization_version=3,
    )
    types = {"f64": Float64, "f32": Float32, "i64": Int64, "i32": Int32, "text": String, "flag": Bool}
    at = datetime(2013, 1, 1, 11, 30, 15, 250_000, tzinfo=UTC)
    frame = pd.DataFrame(
        {
            "origin": ["EWR", "JFK"],
            "number": [7, -7],
            "event_timestamp": [at, at + timedelta(minutes=1)],
            "f64": [0.1, np.nan],
            "f32": [1.5, -2.5],
            "i64": [2**40, 0],
            "i32": [-3, 4],
            "text": ["Zürich", ""],
            "flag": [True, False],
        }
    ).astype({"i32": "int32", "f32": "float32"})
    frame.to_parquet(tmp_path / "source.parquet")
    source = FileSource(path=str(tmp_path / "source.parquet"), timestamp_field="event_timestamp")
    entities = [
        Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING),
        Entity(name="number", join_keys=["number"], value_type=ValueType.INT64),
    ]
    feature_view = FeatureView(
        name="places__3f2a",
        entities=entities,
        schema=[Field(name="origin", dtype=String), Field(name="number", dtype=Int64)]
        + [Field(name=name, dtype=dtype) for name, dtype in types.items()],
        source=source,
        ttl=timedelta(days=1),
    )
    store = FeatureStore(config=config)
    store.apply([*entities, feature_view])
    store.write_to_online_store("places__3f2a", df=frame)

    rows = [{"origin": "EWR", "number": 7}, {"origin": "JFK", "number": -7}, {"origin": "JFK", "number": 7}]
    sdk = store.get_online_features([f"places__3f2a:{name}" for name in types], rows).to_dict()
    pin = ViewPin(
        view="places__3f2a",
        entity={"origin": "from", "number": "n"},
        join_key_types={"origin": "string", "number": "int64"},
        features=list(types),
    )
    inputs = {
        "from": np.array([row["origin"] for row in rows], dtype=object),
        "n": np.array([row["number"] for row in rows]),
    }
    plan = ReadPlan({"release": [pin]})
    (read,) = SqliteStore(tmp_path / "online_store.db").read(plan, inputs, 3, to_us(at + timedelta(hours=1))).views
    for name, values in zip(read.logged.names, read.logged.values, strict=True):
        for ours, theirs in zip(values, sdk[name], strict=True):
            assert ours == theirs or (ours != ours and theirs != theirs) or (ours != ours and theirs is None), name
    seconds = to_us(at.replace(microsecond=0))
    assert read.logged.event_us == [seconds, seconds + 60_000_000, None]
    assert read.degraded == "places__3f2a: missing"
