"""The orchestration side of benchmarks/online_features.py: a release over three views, their rows, the SDK's own reads.

    .venv/bin/python -m benchmarks.online_features_peers prepare HOME REDIS_URL     prints the release's digest
    .venv/bin/python -m benchmarks.online_features_peers reads HOME REDIS_URL SECONDS     prints the table's rows

The rows are written by the project's own writers. In `reads` the Feast SDK, redis-py's asyncio client and the gateway's
own code read the same rows of the same stores in one process, one request after the other and sixteen at a time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import uvloop

from pipelines.adapters.feast_online import open_online
from pipelines.adapters.lightgbm_trainer import LightGbmTrainer
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.release import InputField, Manifest, ModelFeature, OutputContract, ViewPin
from pipelines.features.online_layout import key_encoder
from pipelines.features.publishing import OnlineRows
from pipelines.registry import bundle
from pipelines.settings import Settings
from pipelines.training.recipe import PLAIN_POSTPROCESS
from pipelines.training.trainer import Rows

MODEL = "bench"
VIEWS = {"carrier_view__0001": "carrier", "route_view__0001": "route", "plane_view__0001": "plane"}
KEYS = {"carrier": "string", "route": "string", "plane": "int64"}
PER_VIEW, ENTITIES, TREES, ROWS = 4, 10_000, 200, 20_000
FEATURES = {view: [f"{join_key}_{n}" for n in range(PER_VIEW)] for view, join_key in VIEWS.items()}
PINS = [
    ViewPin(
        view=view, entity={key: key}, join_key_types={key: KEYS[key]}, features=FEATURES[view], ttl_us=86_400_000_000
    )
    for view, key in VIEWS.items()
]


def entity(number: int) -> dict[str, Any]:
    """The keys of one request."""
    return {"carrier": f"carrier-{number}", "route": f"EWR-{number}", "plane": number}


def settings_of(home: Path, kind: str, url: str) -> Settings:
    return Settings(home=home, online_store=kind, redis_url=url)


def prepare(home: Path, url: str) -> str:
    """Write the rows into both stores and bundle the model; the release's digest."""
    rng = np.random.default_rng(7)
    now_us = wall_us()
    for view, key in VIEWS.items():
        _, encode_key = key_encoder({key: KEYS[key]})
        values = rng.normal(size=(ENTITIES, PER_VIEW))
        rows = OnlineRows(
            keys=[encode_key([entity(n)[key]]) for n in range(ENTITIES)],
            columns=[pa.chunked_array([column]) for column in values.T],
            types=["float64"] * PER_VIEW,
            event_us=[now_us - 60_000_000] * ENTITIES,
            created_us=[now_us] * ENTITIES,
        )
        for kind in ("sqlite", "redis"):
            with open_online(settings_of(home, kind, url)) as online:
                online.create(view)
                online.write(view, FEATURES[view], rows, now_us)
    names = [name for of in FEATURES.values() for name in of]
    x = rng.normal(size=(ROWS, len(names))).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=ROWS) > 0).astype(np.float64)
    fitted = LightGbmTrainer().fit(
        "binary", Rows(x, y), {"num_leaves": 31, "num_iterations": TREES}, seed=1, watch=None
    )
    manifest = Manifest(
        model=MODEL,
        semver="1.0.0",
        task="binary",
        inputs=[InputField(name=name, datatype="INT64" if kind == "int64" else "BYTES") for name, kind in KEYS.items()],
        views=PINS,
        features=[ModelFeature(name=name, source="view", view=view) for view, of in FEATURES.items() for name in of],
        output=OutputContract(low=0.0, high=1.0),
        postprocess_params={"score": "score", "low": 0.0, "high": 1.0},
        files={},
    )
    files = {"model.onnx": fitted.to_onnx(), "postprocess.py": PLAIN_POSTPROCESS.read_bytes()}
    with bundle.staged(home / "releases", manifest, files) as staged:
        return bundle.install(home / "releases", staged)


# --- reading in one process ------------------------------------------------------------------------------------------

Read = Callable[[dict[str, Any]], Awaitable[dict[str, float]]]


def sdk_reader(settings: Settings) -> Callable[[dict[str, Any]], dict[str, float]]:
    """The Feast SDK's own read of all three views."""
    from feast.types import Float64

    from tests.contract.feast_repositories import Repository

    for view, key in VIEWS.items():
        repository = Repository(settings, view, {key: KEYS[key]}, dict.fromkeys(FEATURES[view], Float64))
    references = [f"{view}:{name}" for view, of in FEATURES.items() for name in of]

    def read(keys: dict[str, Any]) -> dict[str, float]:
        answer = repository.store.get_online_features(references, [keys]).to_dict()
        return {name: answer[name][0] for of in FEATURES.values() for name in of}

    return read


async def our_reader(settings: Settings) -> Read:
    """The gateway's own read, as it makes it for a request."""
    from serving.online_features.plan import ReadPlan, Wanted
    from serving.online_features.store import open_store

    store, plan = open_store(settings, budget_ms=1000), ReadPlan({"release": PINS})
    await store.start()

    async def read(keys: dict[str, Any]) -> dict[str, float]:
        columns = {name: np.array([value], dtype=object) for name, value in keys.items()}
        reading = store.read(plan, [Wanted(columns, 1, wall_us())])
        (reads,) = reading if isinstance(reading, list) else await reading
        return {name: column[0] for one in reads.views for name, column in one.columns.items()}

    return read


async def redis_py_reader(settings: Settings) -> Read:
    """What the same read costs with redis-py's asyncio client: one pipeline a request, the same decoding."""
    import redis.asyncio

    from serving.online_features import feast_values
    from serving.online_features.entity_keys import EntityKey
    from serving.online_features.redis_layout import feature_field

    client = redis.asyncio.Redis.from_url(settings.redis_url.get_secret_value())
    fields = {view: [feature_field(view, name) for name in of] for view, of in FEATURES.items()}
    keys_of = {key: EntityKey({key: kind}) for key, kind in KEYS.items()}

    async def read(keys: dict[str, Any]) -> dict[str, float]:
        async with client.pipeline(transaction=False) as pipe:
            for view, key in VIEWS.items():
                pipe.hmget(keys_of[key].serialize([keys[key]]) + b"slipway", fields[view])
            replies = await pipe.execute()
        return {
            name: feast_values.decode(data)
            for of, reply in zip(FEATURES.values(), replies, strict=True)
            for name, data in zip(of, reply, strict=True)
        }

    return read


def keys_for_ever() -> Iterator[dict[str, Any]]:
    order = np.random.default_rng(11).permutation(ENTITIES).tolist()
    return cycle([entity(number) for number in order])


async def timed(name: str, read: Read, seconds: float, at_once: int) -> dict[str, Any]:
    """Reads a second, latency, and CPU of this process a read."""
    keys, latencies = keys_for_ever(), []

    async def client(until: float) -> None:
        while time.perf_counter() < until:
            started = time.perf_counter()
            await read(next(keys))
            latencies.append(time.perf_counter() - started)

    await client(time.perf_counter() + seconds / 10)
    latencies.clear()
    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(client(started + seconds) for _ in range(at_once)))
    cpu, elapsed = time.process_time() - cpu, time.perf_counter() - started
    found = np.sort(latencies) * 1e3
    return {
        "reader": name,
        "at_once": at_once,
        "reads_per_s": round(len(found) / elapsed),
        "p50_ms": round(float(found[len(found) // 2]), 3),
        "p99_ms": round(float(found[len(found) * 99 // 100]), 3),
        "cpu_us_per_read": round(cpu / len(found) * 1e6, 1),
    }


async def reads(home: Path, url: str, seconds: float) -> list[dict[str, Any]]:
    """Every reader over both stores; first, that they read the same."""
    rows = []
    for kind in ("sqlite", "redis"):
        settings = settings_of(home, kind, url)
        of_sdk = sdk_reader(settings)

        async def sdk(keys: dict[str, Any], of_sdk: Any = of_sdk) -> dict[str, float]:
            return of_sdk(keys)

        readers: dict[str, tuple[Read, tuple[int, ...]]] = {f"Feast SDK, {kind}": (sdk, (1,))}
        readers[f"gateway's code, {kind}"] = (await our_reader(settings), (1, 16))
        if kind == "redis":
            readers["redis-py asyncio, redis"] = (await redis_py_reader(settings), (1, 16))
        expected = of_sdk(entity(5))
        for name, (read, widths) in readers.items():
            if await read(entity(5)) != expected:
                raise SystemExit(f"{name} reads something else than the SDK")
            rows += [await timed(name, read, seconds, width) for width in widths]
    return rows


if __name__ == "__main__":
    place, address = Path(sys.argv[2]), sys.argv[3]
    if sys.argv[1] == "prepare":
        print(json.dumps(prepare(place, address)))
    else:
        print(json.dumps(uvloop.run(reads(place, address, float(sys.argv[4])))))
