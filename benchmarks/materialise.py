"""Materialisation in bulk beside Feast's own, on the same rows in one run, to SQLite and Redis.

    .venv/bin/python -m benchmarks.materialise [--entities 100000] [--features 20]

Feast: `FeatureStore.materialize` from a Parquet file by its default (file) offline store. Ours: from the Delta table of
a view, as the task `materialise` does it: read, encode, write. Both end with the same rows readable by Feast's SDK,
which is checked. Then a night in which one key in a hundred has a new row. Seconds of wall time and of processor time
(of this process and of Redis).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.feast_repository import plain_store
from benchmarks.provenance import RESULTS, provenance, record
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import OnlineWriter
from pipelines.adapters.feast_redis import FeastRedis
from pipelines.adapters.feast_sqlite import FeastSqlite
from pipelines.contracts.clocks import to_us
from pipelines.features.publishing import Pending
from pipelines.spec.view import ViewSpec
from tests.redis_server import RedisServer, running_redis

SEED = 11
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
TYPES = ("float64", "float64", "float64", "int64", "string")


def spec_of(features: int) -> ViewSpec:
    return ViewSpec.model_validate(
        {
            "name": "wide",
            "owner": "benchmark",
            "description": "Features of every common type.",
            "entity": {"name": "thing", "keys": {"thing": "int64"}},
            "datasets": ["weather"],
            "transform": "weather_at_origin.py:build",
            "features": {f"f{number}": {"type": TYPES[number % len(TYPES)]} for number in range(features)},
            "look_back": "1h event_time",
            "publish_every": "1h event_time",
            "freshness": "1h event_time",
        }
    )


def rows_of(spec: ViewSpec, keys: np.ndarray, at: datetime, seed: int) -> pa.Table:
    rng, count = np.random.default_rng(seed), len(keys)
    made = {
        "float64": lambda: pa.array(rng.normal(size=count)),
        "int64": lambda: pa.array(rng.integers(0, 10_000, count)),
        "string": lambda: pa.array([f"text {n}" for n in rng.integers(0, 1000, count)]),
    }
    stamp = pa.array([to_us(at)] * count, pa.timestamp("us", "UTC"))
    columns = {name: made[feature.type]() for name, feature in spec.features.items()}
    return pa.table({"thing": keys, **columns, "event_timestamp": stamp, "created_timestamp": stamp})


class Clock:
    """Wall and processor seconds of a block; `other` gives those of another process."""

    def __init__(self, other: Callable[[], float]) -> None:
        self._other = other

    def of(self, work: Callable[[], Any]) -> dict[str, float]:
        wall, own, other = time.perf_counter(), time.process_time(), self._other()
        work()
        used = time.process_time() - own + self._other() - other
        return {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(used, 2)}


def feast_store(folder: Path, online: dict[str, Any], spec: ViewSpec) -> Any:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64, String

    types = {"float64": Float64, "int64": Int64, "string": String}
    store = plain_store(folder, online, {"type": "file"})
    thing = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    fields = [Field(name=name, dtype=types[feature.type]) for name, feature in spec.features.items()]

    def view(name: str) -> Any:
        return FeatureView(
            name=name,
            entities=[thing],
            schema=[Field(name="thing", dtype=Int64), *fields],
            source=FileSource(
                name=name,
                path=str(folder / "rows.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column="created_timestamp",
            ),
            ttl=timedelta(days=1),
        )

    store.apply([thing, view("wide"), view("theirs")])
    return store


def ours(lake: DeltaLake, spec: ViewSpec, online: OnlineWriter, as_of: datetime, where: str | None = None) -> int:
    """What the task does once it knows what is new (`pipelines.wiring.features.Publisher`)."""
    online.create("wide")
    pending = Pending(spec, lake.read("features/wide", where=where).sort_by("event_timestamp"))
    taken = pending.take(to_us(as_of))
    online.write("wide", pending.features, taken, to_us(as_of))
    return len(taken)


def measure(kind: str, folder: Path, spec: ViewSpec, entities: int, server: RedisServer | None) -> dict[str, Any]:
    clock = Clock(server.cpu_seconds if server else lambda: 0.0)
    online = {"type": "sqlite", "path": str(folder / "feast.db")}
    if server:
        online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port},password={server.password}"}
    store = feast_store(folder, online, spec)
    lake = DeltaLake(folder / "lake")

    def open_ours() -> Any:
        return FeastRedis(server.url, "bench") if server else FeastSqlite(folder / "feast.db", "bench")

    with open_ours() as writer:
        bulk = clock.of(lambda: ours(lake, spec, writer, NOON))
    window = (NOON - timedelta(days=1), NOON + timedelta(minutes=1))
    theirs = clock.of(lambda: store.materialize(*window, feature_views=["theirs"]))
    sample = [{"thing": key} for key in (0, 1, entities // 2, entities - 1)]
    names = list(spec.features)
    read = [
        store.get_online_features([f"{view}:{name}" for name in names], sample).to_dict() for view in ("wide", "theirs")
    ]
    assert read[0] == read[1], "the SDK reads other values of ours than of its own"
    assert all(value is not None for name in names for value in read[0][name])
    night = NOON + timedelta(hours=12)
    changed = rows_of(spec, np.arange(0, entities, 100), night, SEED + 1)
    if kind == "sqlite":
        lake.append("features/wide", changed)
    newer = f"event_timestamp > make_timestamptz({to_us(NOON)})"
    with open_ours() as writer:
        again = clock.of(lambda: ours(lake, spec, writer, night, newer))
    found = {"ours": bulk, "feast": theirs, "ours_one_key_in_100": again}
    found["times_faster"] = {of: round(theirs[of] / bulk[of], 1) for of in ("wall_s", "cpu_s")}
    print(f"{kind}: {entities:,} entities x {len(names)} features")
    for name in ("ours", "feast", "ours_one_key_in_100"):
        print(f"  {name:22} {found[name]['wall_s']:7.2f} s wall {found[name]['cpu_s']:7.2f} s processor")
    times = found["times_faster"]
    print(f"  faster than Feast      {times['wall_s']} x wall, {times['cpu_s']} x processor")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--stores", nargs="+", default=["sqlite", "redis"], choices=["sqlite", "redis"])
    parser.add_argument("--out", type=Path, default=RESULTS / "materialise.json")
    given = parser.parse_args()
    began = provenance()
    spec = spec_of(given.features)
    rows = rows_of(spec, np.random.default_rng(SEED).permutation(given.entities), NOON, SEED)
    results: dict[str, Any] = {"entities": given.entities, "features": given.features, "seed": SEED}
    with tempfile.TemporaryDirectory(prefix="slipway-materialise-") as folder, ExitStack() as open_:
        pq.write_table(rows, Path(folder) / "rows.parquet")
        DeltaLake(Path(folder) / "lake").append("features/wide", rows)
        for kind in given.stores:
            server = open_.enter_context(running_redis()) if kind == "redis" else None
            results[kind] = measure(kind, Path(folder), spec, given.entities, server)
    record(given.out, began | results)


if __name__ == "__main__":
    main()
