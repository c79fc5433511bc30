"""A Feast repository over a real online store of either kind, for the tests that hold ours against the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.adapters import feast_registry
from pipelines.contracts.release import ViewPin
from pipelines.settings import Settings
from serving.online_features.plan import ReadPlan, Reads, ViewRead, Wanted
from serving.online_features.store import open_store
from tests.redis_server import RedisServer, running_redis

STORES = ("sqlite", "redis")


@contextmanager
def installation(kind: str, home: Path) -> Iterator[Settings]:
    """Settings of an installation with an empty online store of this kind."""
    if kind == "sqlite":
        yield Settings(home=home, clock="replay")
        return
    with running_redis() as server:
        yield redis_settings(home, server)


def redis_settings(home: Path, server: RedisServer) -> Settings:
    return Settings(home=home, clock="replay", online_store="redis", redis_url=server.url)


class Repository:
    """One view of one Feast repository, written and read by the SDK; and read by the gateway's code."""

    def __init__(self, settings: Settings, view: str, keys: Mapping[str, str], features: Mapping[str, Any]) -> None:
        from feast import Entity, FeatureView, Field, FileSource, ValueType
        from feast.types import Int32, Int64, String, UnixTimestamp

        kinds = {
            "string": (ValueType.STRING, String),
            "int64": (ValueType.INT64, Int64),
            "int32": (ValueType.INT32, Int32),
            "timestamp": (ValueType.UNIX_TIMESTAMP, UnixTimestamp),
        }
        self.settings, self.name, self.keys, self.features = settings, view, dict(keys), list(features)
        self.store = feast_registry.open_store(settings)
        entities = [Entity(name=key, join_keys=[key], value_type=kinds[kind][0]) for key, kind in keys.items()]
        self.view = FeatureView(
            name=view,
            entities=entities,
            schema=[
                *(Field(name=key, dtype=kinds[kind][1]) for key, kind in keys.items()),
                *(Field(name=name, dtype=dtype) for name, dtype in features.items()),
            ],
            source=FileSource(path=str(settings.root / "none.parquet"), timestamp_field="event_timestamp"),
        )
        self.store.apply([*entities, self.view])

    def write(self, key: Mapping[str, Any], values: Mapping[str, Any], at: Any) -> None:
        """One row by the SDK's own writer; `values` are `feast.types.Value` messages."""
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        fields = {"string": "string_val", "int64": "int64_val", "int32": "int32_val", "timestamp": "unix_timestamp_val"}
        entity_key = EntityKey(
            join_keys=list(key),
            entity_values=[Value(**{fields[self.keys[name]]: value}) for name, value in key.items()],
        )
        self.store._get_provider().online_write_batch(
            self.store.config, self.view, [(entity_key, dict(values), at, None)], None
        )

    def by_sdk(self, *entities: Mapping[str, Any]) -> dict[str, list[Any]]:
        references = [f"{self.name}:{feature}" for feature in self.features]
        answer: dict[str, list[Any]] = self.store.get_online_features(references, list(entities)).to_dict(True)
        return answer

    def by_gateway(self, event_us: int, *entities: Mapping[str, Any], ttl_us: int | None = None) -> ViewRead:
        pin = ViewPin(
            view=self.name,
            entity={name: name for name in self.keys},
            join_key_types=self.keys,
            features=self.features,
            ttl_us=ttl_us,
        )
        columns = {name: np.array([row[name] for row in entities], dtype=object) for name in self.keys}
        (read,) = read_online(self.settings, [pin], columns, len(entities), event_us).of("release")
        return read


def read_online(
    settings: Settings, pins: Sequence[ViewPin], columns: dict[str, np.ndarray], rows: int, event_us: int
) -> Reads:
    """One read as the gateway makes it, from opening the store to closing it."""

    async def read() -> Reads:
        store = open_store(settings, budget_ms=5000)
        await store.start()
        try:
            reading = store.read(ReadPlan({"release": pins}), [Wanted(columns, rows, event_us)])
            (reads,) = reading if isinstance(reading, list) else await reading
            return reads
        finally:
            await store.stop()

    return asyncio.run(read())
