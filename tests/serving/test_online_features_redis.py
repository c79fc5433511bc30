"""Online features out of a real Redis: one moment, one round trip, and what happens when the server is gone or slow."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from pipelines.contracts.clocks import to_us
from pipelines.contracts.events import Override, Response
from pipelines.contracts.release import InputField, ModelFeature, ViewPin
from serving.online_features.entity_keys import EntityKey
from serving.online_features.plan import ReadPlan, ViewRead, Wanted
from serving.online_features.redis_layout import feature_field, stamp_field
from serving.online_features.redis_store import RedisStore
from tests.redis_server import RedisServer, running_redis
from tests.serving.conftest import Installation, Running, Start

NOON = to_us(datetime(2013, 1, 1, 12))
HOUR = 3_600_000_000
DAY = 24 * HOUR

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop of production, whose order of timers and sockets is another than that of asyncio's own."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    shared.client().flushall()
    return shared


def view(**changes: object) -> ViewPin:
    fields: dict[str, object] = {
        "view": "weather__3f2a",
        "entity": {"origin": "origin"},
        "join_key_types": {"origin": "string"},
        "features": ["temp", "wind"],
        "ttl_us": DAY,
    }
    return ViewPin(**(fields | changes))


def put(server: RedisServer, pin: ViewPin, key: dict[str, object], at_us: int, features: dict[str, float]) -> None:
    """Write a row in Feast's layout."""
    serializer = EntityKey(pin.join_key_types)
    seconds, micros = divmod(at_us, 1_000_000)
    stamp = b"\x08" + _varint(seconds) + (b"\x10" + _varint(micros * 1000) if micros else b"")
    fields = {feature_field(pin.view, name): b"\x29" + struct.pack("<d", value) for name, value in features.items()}
    server.client().hset(
        serializer.serialize([key[name] for name in serializer.names]) + b"slipway",
        mapping={stamp_field(pin.view): stamp, **fields},
    )


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


async def read_all(store: RedisStore, pins: list[ViewPin], *origins: object, at_us: int = NOON) -> list[ViewRead]:
    inputs = {"origin": np.array(origins, dtype=object)}
    return (await store.read(ReadPlan({"release": pins}), [Wanted(inputs, len(origins), at_us)]))[0].of("release")


@pytest.fixture
async def store(server: RedisServer) -> Any:
    store = RedisStore(server.url, budget_ms=2000)
    await store.start()
    yield store
    await store.stop()


@pytest.mark.parametrize(
    ("at_us", "ttl_us", "value", "said"),
    [
        (NOON - DAY, DAY, 39.5, ""),
        (NOON - DAY - 1, DAY, None, "expired"),
        (NOON - 400 * DAY, 0, 39.5, ""),
        (NOON, DAY, 39.5, ""),
        (NOON + 1, DAY, None, "from after the request"),
    ],
)
async def test_time_to_live_is_held_to_the_microsecond(
    server: RedisServer, store: RedisStore, at_us: int, ttl_us: int, value: float | None, said: str
) -> None:
    put(server, view(), {"origin": "EWR"}, at_us, {"temp": 39.5})
    (read,) = await read_all(store, [view(ttl_us=ttl_us)], "EWR")
    assert read.logged.values == [[value], [None]]
    assert read.logged.event_us == [at_us if value else None]
    assert said in read.degraded
    assert bool(read.degraded) == bool(said)


async def test_missing_rows_and_null_keys_give_nulls(server: RedisServer, store: RedisStore) -> None:
    put(server, view(), {"origin": "EWR"}, NOON, {"temp": 39.5, "wind": 3.0})
    weather, traffic = await read_all(store, [view(), view(view="traffic__1111", features=["n"])], "EWR", None, "JFK")
    assert weather.logged.values == [[39.5, None, None], [3.0, None, None]]
    assert weather.degraded == "weather__3f2a: missing"
    assert traffic.logged.values == [[None, None, None]]
    assert traffic.degraded == "traffic__1111: missing"
    (alone,) = await read_all(store, [view()], None)
    assert alone.degraded == ""


async def test_requests_of_one_turn_of_the_loop_share_a_round_trip(
    server: RedisServer, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"K{n}" for n in range(40)]
    for n, name in enumerate(names):
        put(server, view(), {"origin": name}, NOON, {"temp": float(n)})
    client = server.client()
    before = client.info("stats")
    many = await asyncio.gather(*(read_all(store, [view()], name) for name in names))
    after = client.info("stats")
    assert [reads[0].logged.values[0] for reads in many] == [[float(n)] for n in range(40)]
    assert after["total_commands_processed"] - before["total_commands_processed"] == 40 + 1  # and one INFO
    # The server read its sockets once for all of them, and once or twice for the two INFOs.
    assert after["total_reads_processed"] - before["total_reads_processed"] <= 3


async def test_a_wrong_password_is_said_without_the_password(server: RedisServer) -> None:
    store = RedisStore(f"redis://:wrong-secret@127.0.0.1:{server.port}/0")
    await store.start()
    (read,) = await read_all(store, [view()], "EWR")
    await store.stop()
    assert read.unavailable
    assert "WRONGPASS" in read.degraded
    assert "wrong-secret" not in read.degraded


async def test_a_server_that_is_no_redis_is_said_and_left() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    other = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = RedisStore(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}/0")
    await store.start()
    (read,) = await read_all(store, [view()], "EWR")
    await store.stop()
    other.close()
    assert read.unavailable
    assert "no Redis protocol" in read.degraded


async def test_a_key_of_another_kind_is_said_and_harms_nothing_else(server: RedisServer, store: RedisStore) -> None:
    put(server, view(), {"origin": "JFK"}, NOON, {"temp": 1.0})
    server.client().set(EntityKey({"origin": "string"}).serialize(["EWR"]) + b"slipway", "text")
    (read,) = await read_all(store, [view()], "EWR")
    assert read.unavailable
    assert "WRONGTYPE" in read.degraded
    (read,) = await read_all(store, [view()], "JFK")
    assert read.logged.values[0] == [1.0]


# --- the gateway -----------------------------------------------------------------------------------------------------


def release(home: Installation, score: float, semver: str, on_features_unavailable: str = "defaults") -> str:
    return home.release(
        score,
        semver=semver,
        inputs=[
            InputField(name=name, datatype=kind, required=False)
            for name, kind in {"x": "FP64", "origin": "BYTES"}.items()
        ],
        views=[view(features=["temp"])],
        features=[ModelFeature(name="temp", source="view", view="weather__3f2a", default=-1.0)],
        on_features_unavailable=on_features_unavailable,
    )


async def ask(running: Running, origin: str = "EWR") -> Any:
    tensor = {"name": "origin", "datatype": "BYTES", "shape": [1], "data": [origin]}
    body = {"inputs": [tensor], "parameters": {"event_time": "2013-01-01T12:00:00Z"}}
    return await running.client.post("/v2/models/m/infer", json=body)


async def until(running: Running, condition: Callable[[Any], bool]) -> Any:
    """Ask until the answer is as wanted."""
    async with asyncio.timeout(20):
        while not condition(answer := await ask(running)):  # noqa: ASYNC110 - the condition is an answer
            await asyncio.sleep(0.02)  # between two requests of a patient client
    return answer


def degraded(answer: Any) -> str:
    said: str = answer.json()["parameters"]["degraded"]
    return said


@asynccontextmanager
async def over_redis(
    start: Start, *, up: bool = True, budget_ms: float = 2000
) -> AsyncIterator[tuple[Running, RedisServer]]:
    """A gateway over a Redis of its own, with EWR's row in it; or one whose Redis has not been started yet."""
    with running_redis(start=up) as server:
        if up:
            put(server, view(), {"origin": "EWR"}, NOON - HOUR, {"temp": 39.5})
        limits = {"features_budget_ms": budget_ms}
        async with start(clock="replay", online_store="redis", redis_url=server.url, limits=limits) as running:
            yield running, server


async def test_killed_under_requests_the_defaults_answer_and_a_restart_needs_no_restart_here(
    home: Installation, start: Start
) -> None:
    home.publish(champion=release(home, 0.3, "2.0.0"))
    async with over_redis(start) as (running, server):
        assert degraded(await ask(running)) == ""

        async def client() -> list[Any]:
            return [await ask(running) for _ in range(30)]

        clients = [asyncio.create_task(client()) for _ in range(8)]
        await asyncio.sleep(0.02)  # some requests are answered, some are on their way
        server.kill()
        answers = [answer for one in clients for answer in await one]
        assert {answer.status_code for answer in answers} == {200}
        assert "unavailable" in degraded(await ask(running))
        server.start()
        put(server, view(), {"origin": "EWR"}, NOON - HOUR, {"temp": 40.5})
        assert degraded(await until(running, lambda answer: not degraded(answer))) == ""
    responses = home.events(Response)
    assert {one.status for one in responses} == {"ok"}
    assert responses[-1].features[0].values == [[40.5]]
    lost = [one for one in responses if one.degraded]
    assert lost
    assert all(one.features[0].values == [[None]] for one in lost)


async def test_a_release_that_refuses_gives_503_while_the_store_is_down_and_not_for_a_missing_row(
    home: Installation, start: Start
) -> None:
    home.publish(champion=release(home, 0.3, "2.0.0", "refuse"))
    async with over_redis(start) as (running, server):
        assert (await ask(running)).status_code == 200
        missing = await ask(running, "JFK")
        assert (missing.status_code, degraded(missing)) == (200, "weather__3f2a: missing")
        server.kill()
        refused = await ask(running)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "online features" in refused.json()["error"]
        server.start()
        await until(running, lambda answer: answer.status_code == 200)
    assert "error" in {one.status for one in home.events(Response)}


async def test_a_challenger_that_refuses_is_answered_for_and_does_not_trip_the_breaker(
    home: Installation, start: Start
) -> None:
    home.publish(
        "split",
        champion=release(home, 0.3, "2.0.0"),
        challenger=release(home, 0.7, "2.1.0", "refuse"),
        share_ppm=1_000_000,
    )
    async with over_redis(start, up=False) as (running, _):
        answers = [await ask(running) for _ in range(40)]
        await running.shadows_done()
    assert {(one.status_code, one.json()["parameters"]["arm"]) for one in answers} == {(200, "champion")}
    assert home.events(Override) == []


async def test_a_frozen_server_costs_one_budget_and_then_nothing_until_it_answers_again(
    home: Installation, start: Start
) -> None:
    home.publish(champion=release(home, 0.3, "2.0.0"))
    async with over_redis(start, budget_ms=50) as (running, server):
        await until(running, lambda answer: not degraded(answer))
        server.freeze()
        late = await ask(running)
        assert "over its time budget" in degraded(late)
        behind = [await ask(running) for _ in range(20)]
        # On a slow machine the link may have been given up meanwhile.
        assert {degraded(one) for one in behind} <= {
            f"weather__3f2a: unavailable ({why})" for why in ("behind", "it does not answer")
        }
        server.thaw()
        await until(running, lambda answer: not degraded(answer))
        # Long enough frozen, it is left, and taken up again when it comes back.
        server.freeze()
        await until(running, lambda answer: "does not answer" in degraded(answer))
        server.thaw()
        await until(running, lambda answer: not degraded(answer))
    waits: dict[str, list[int]] = {}
    for one in home.events(Response):
        if one.degraded:
            waits.setdefault(one.degraded[0].partition("(")[2], []).append(one.features_us)
    assert min(waits.pop("over its time budget)")) >= 49_000  # timers count whole milliseconds
    assert all(sorted(of_reason)[len(of_reason) // 2] < 50_000 for of_reason in waits.values())


async def test_refused_at_the_start_the_gateway_serves_and_finds_the_server_later(
    home: Installation, start: Start
) -> None:
    home.publish(champion=release(home, 0.3, "2.0.0"))
    async with over_redis(start, up=False) as (running, server):
        assert degraded(await ask(running)) == "weather__3f2a: unavailable (connection refused)"
        server.start()
        put(server, view(), {"origin": "EWR"}, NOON - HOUR, {"temp": 39.5})
        await until(running, lambda answer: not degraded(answer))
    assert home.events(Response)[-1].features[0].values == [[39.5]]
