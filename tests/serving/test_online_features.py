"""Online features out of Feast's SQLite layout: TTL, missing parts, several keys, what the log and the answer say."""

from __future__ import annotations

import sqlite3
import struct
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from pipelines.contracts.clocks import to_us
from pipelines.contracts.events import Response
from pipelines.contracts.release import InputField, ModelFeature, ViewPin
from serving.online_features.entity_keys import EntityKey
from serving.online_features.plan import ReadPlan, ViewRead, Wanted
from serving.online_features.sqlite_store import SqliteStore
from serving.shadow import Company
from tests.serving.conftest import Installation, Start

NOON = to_us(datetime(2013, 1, 1, 12))
HOUR = 3_600_000_000
DAY = 24 * HOUR


def view(**changes: object) -> ViewPin:
    fields: dict[str, object] = {
        "view": "weather__3f2a",
        "entity": {"origin": "from"},
        "join_key_types": {"origin": "string"},
        "features": ["temp", "wind"],
        "ttl_us": DAY,
    }
    return ViewPin(**(fields | changes))


def put(path: Path, pin: ViewPin, key: dict[str, object], stamp: str | int, features: dict[str, float | None]) -> None:
    """Write in Feast's layout: a row a feature; `event_ts` is ISO text in UTC or, as of Feast 0.67, seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    serializer = EntityKey(pin.join_key_types)
    entity_key = serializer.serialize([key[name] for name in serializer.names])
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            f'CREATE TABLE IF NOT EXISTS "slipway_{pin.view}" (entity_key BLOB, feature_name TEXT, value BLOB,'
            " value_text TEXT, vector_value BLOB, event_ts timestamp, created_ts timestamp,"
            " PRIMARY KEY(entity_key, feature_name))"
        )
        for name, value in features.items():
            message = b"" if value is None else bytes([5 << 3 | 1]) + struct.pack("<d", value)
            connection.execute(
                f'INSERT OR REPLACE INTO "slipway_{pin.view}" VALUES (?, ?, ?, NULL, NULL, ?, NULL)',
                (entity_key, name, message, stamp),
            )
    connection.close()


def read_by(store: SqliteStore, pin: ViewPin, inputs: dict[str, np.ndarray], rows: int, event_us: int) -> ViewRead:
    """One view, read by one release."""
    (read,) = store.read(ReadPlan({"release": [pin]}), [Wanted(inputs, rows, event_us)])[0].of("release")
    return read


def origins(*values: object) -> dict[str, np.ndarray]:
    return {"from": np.array(values, dtype=object)}


def test_a_row_is_read_with_its_event_time(tmp_path: Path) -> None:
    path = tmp_path / "feast" / "online_store.db"
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5, "wind": None, "other": 1.0})
    read = read_by(SqliteStore(path), view(), origins("EWR", "EWR"), 2, NOON)
    assert read.logged.names == ["temp", "wind"]
    assert read.logged.event_us == [NOON - HOUR] * 2
    assert read.logged.values == [[39.5, 39.5], [None, None]]
    assert read.columns["temp"].tolist() == [39.5, 39.5]
    assert np.isnan(read.columns["wind"]).all()
    assert read.degraded == ""


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_seconds_are_read_as_feast_wrote_them_in_any_time_zone(
    tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        feasts = int(datetime(2013, 1, 1, 11).timestamp())
        path = tmp_path / "online_store.db"
        put(path, view(), {"origin": "EWR"}, feasts, {"temp": 39.5})
        read = read_by(SqliteStore(path), view(), origins("EWR"), 1, NOON)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert read.logged.event_us == [NOON - HOUR]


@pytest.mark.parametrize(
    ("stamp", "ttl_us", "value", "said"),
    [
        ("2012-12-31 12:00:00", DAY, 39.5, ""),
        ("2012-12-31 11:59:59.999999", DAY, None, "expired"),
        ("1999-12-31 12:00:00", None, 39.5, ""),
        ("1999-12-31 12:00:00", 0, 39.5, ""),
        ("2013-01-01 12:00:00", DAY, 39.5, ""),
        ("2013-01-01 12:00:00.000001", DAY, None, "from after the request"),
    ],
)
def test_time_to_live_is_held_against_the_requests_event_time(
    tmp_path: Path, stamp: str, ttl_us: int | None, value: float | None, said: str
) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "EWR"}, stamp, {"temp": 39.5})
    read = read_by(SqliteStore(path), view(ttl_us=ttl_us), origins("EWR"), 1, NOON)
    assert read.logged.values[0] == [value]
    assert said in read.degraded
    assert bool(read.degraded) == bool(said)


def test_keys_of_several_columns_are_told_apart(tmp_path: Path) -> None:
    pin = view(entity={"b": "dest", "a": "from"}, join_key_types={"b": "int64", "a": "string"}, features=["temp"])
    path = tmp_path / "online_store.db"
    put(path, pin, {"a": "EWR", "b": 7}, "2013-01-01 11:00:00", {"temp": 1.0})
    put(path, pin, {"a": "EWR", "b": 8}, "2013-01-01 10:00:00", {"temp": 2.0})
    inputs = {"from": np.array(["EWR", "EWR", "JFK"], dtype=object), "dest": np.array([8, 7, 7])}
    read = read_by(SqliteStore(path), pin, inputs, 3, NOON)
    assert read.logged.values == [[2.0, 1.0, None]]
    assert read.degraded == "weather__3f2a: missing"


def test_a_null_key_gives_nulls_and_is_no_fault_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 1.0})
    read = read_by(SqliteStore(path), view(), origins(None), 1, NOON)
    assert read.logged.values == [[None], [None]]
    assert read.degraded == ""


def test_more_keys_than_one_query_may_bind_are_read(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    for name in ("K3", "K1999"):
        put(path, view(), {"origin": name}, "2013-01-01 11:00:00", {"temp": 1.0})
    read = read_by(SqliteStore(path), view(), origins(*(f"K{k}" for k in range(2000))), 2000, NOON)
    assert [k for k, value in enumerate(read.logged.values[0]) if value is not None] == [3, 1999]


def test_a_missing_store_table_or_broken_file_degrades_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    store = SqliteStore(path)
    assert "unavailable" in read_by(store, view(), origins("EWR"), 1, NOON).degraded
    put(path, view(view="other"), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 1.0})
    assert "no such table" in read_by(store, view(), origins("EWR"), 1, NOON).degraded
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 1.0})
    assert read_by(store, view(), origins("EWR"), 1, NOON).degraded == ""
    # The store is rebuilt under the same name, as a materialisation from scratch does.
    put(tmp_path / "new.db", view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 2.0})
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    (tmp_path / "new.db").replace(path)
    assert read_by(store, view(), origins("EWR"), 1, NOON).logged.values[0] == [2.0]


def test_a_view_that_cannot_be_read_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5})
    plan = ReadPlan({"release": [view(view="never_made"), view()]})
    lost, weather = SqliteStore(path).read(plan, [Wanted(origins("EWR"), 1, NOON)])[0].of("release")
    assert lost.unavailable
    assert "no such table" in lost.degraded
    assert (weather.unavailable, weather.logged.values[0]) == (False, [39.5])


def test_a_locked_store_is_waited_for_no_longer_than_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5})
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("PRAGMA journal_mode=DELETE")  # as Feast's own writer leaves it: in WAL no reader waits
        writer.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        read = read_by(SqliteStore(path, budget_ms=50), view(), origins("EWR"), 1, NOON)
        waited_s = time.monotonic() - began
        writer.execute("ROLLBACK")
    writer.close()
    assert read.unavailable
    assert "locked" in read.degraded
    assert 0.05 <= waited_s < 2


def test_a_statement_over_many_keys_is_cut_at_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "K1"}, "2013-01-01 11:00:00", {"temp": 39.5})
    keys = origins(*(f"K{k}" for k in range(5000)))
    cut = read_by(SqliteStore(path, budget_ms=0.0), view(), keys, 5000, NOON)
    assert cut.degraded == "weather__3f2a: unavailable (over its time budget)"
    assert cut.logged.values[0] == [None] * 5000
    assert not read_by(SqliteStore(path, budget_ms=1000), view(), keys, 5000, NOON).unavailable


def two_releases(home: Installation, pin: ViewPin) -> tuple[str, str]:
    """Champion and challenger that read `temp` of the view `pin`, and take `x` and `origin`, both optional."""
    inputs = [
        InputField(name=name, datatype=kind, required=False) for name, kind in (("x", "FP64"), ("origin", "BYTES"))
    ]
    features = [ModelFeature(name="temp", source="view", view=pin.view, default=-1.0)]
    one = home.release(0.4, semver="2.0.0", inputs=inputs, views=[pin], features=features)
    return one, home.release(0.5, semver="2.1.0", inputs=inputs, views=[pin], features=features)


@pytest.mark.anyio
async def test_features_reach_the_model_the_log_and_the_answer_says_when_they_are_missing(
    home: Installation, start: Start
) -> None:
    pin = view(entity={"origin": "origin"}, features=["temp"])
    one, two = two_releases(home, pin)
    home.publish("shadow", champion=one, challenger=two)
    path = home.home / "feast" / "online_store.db"
    put(path, pin, {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5})
    parameters = {"event_time": "2013-01-01T12:00:00Z"}
    async with start(clock="replay") as running:
        for origin, degraded in (("EWR", ""), ("JFK", "weather__3f2a: missing")):
            tensor = {"name": "origin", "datatype": "BYTES", "shape": [1], "data": [origin]}
            body = {"id": origin, "inputs": [tensor], "parameters": parameters}
            answer = await running.client.post("/v2/models/m/infer", json=body)
            assert answer.status_code == 200
            assert answer.json()["parameters"]["degraded"] == degraded
            await running.shadows_done()
    by_id = {(one.request_id, one.arm): one for one in home.events(Response)}
    for arm in ("champion", "challenger"):
        (read,) = by_id["EWR", arm].features
        assert (read.view, read.names, read.event_us, read.values) == (pin.view, ["temp"], [NOON - HOUR], [[39.5]])
        assert by_id["JFK", arm].degraded == ["weather__3f2a: missing"]
    assert by_id["EWR", "challenger"].features_us > 0


def test_a_view_of_two_releases_is_read_once_whatever_features_each_takes(tmp_path: Path) -> None:
    path = tmp_path / "online_store.db"
    put(path, view(), {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5, "wind": 12.0})
    one, two = view(features=["wind"]), view(features=["temp", "wind"], ttl_us=HOUR // 2)
    plan = ReadPlan({"a": [one], "b": [two], "c": [one]})
    assert [list(entity.views[0].features) for entity in plan.entities] == [["wind", "temp"]]
    (reads,) = SqliteStore(path).read(plan, [Wanted(origins("EWR"), 1, NOON)])
    assert [read.logged.values for read in reads.of("a")] == [[[12.0]]]
    assert [(read.logged.names, read.degraded) for read in reads.of("b")] == [
        (["temp", "wind"], "weather__3f2a: expired")
    ]
    assert reads.of("c") == reads.of("a")


def test_a_key_that_no_row_can_have_is_no_error_and_is_said(tmp_path: Path) -> None:
    pin = view(entity={"plane": "from"}, join_key_types={"plane": "int64"}, features=["temp"])
    path = tmp_path / "online_store.db"
    put(path, pin, {"plane": 7}, "2013-01-01 11:00:00", {"temp": 1.0})
    read = read_by(SqliteStore(path), pin, origins("seven", 7.5, 2**70, float("inf"), 7.0), 5, NOON)
    assert read.logged.values == [[None, None, None, None, 1.0]]
    assert read.degraded == "weather__3f2a: unusable key"


@pytest.mark.anyio
async def test_the_second_arm_sees_the_moment_of_the_request_not_its_own(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = view(entity={"origin": "origin"}, features=["temp"])
    field = InputField(name="origin", datatype="BYTES", required=False)
    x = InputField(name="x", datatype="FP64", required=False)
    features = [ModelFeature(name="temp", source="view", view=pin.view)]
    releases = [
        home.release(0.4, semver=f"2.{minor}.0", inputs=[x, field], views=[pin], features=features) for minor in (0, 1)
    ]
    home.publish("shadow", champion=releases[0], challenger=releases[1])
    path = home.home / "feast" / "online_store.db"
    put(path, pin, {"origin": "EWR"}, "2013-01-01 11:00:00", {"temp": 39.5})
    tensor = {"name": "origin", "datatype": "BYTES", "shape": [1], "data": ["EWR"]}
    body = {"inputs": [tensor], "parameters": {"event_time": "2013-01-01T12:00:00Z"}}
    async with start(clock="replay") as running:
        shadow = running.gateway.shadow
        held: list[Company] = []
        with monkeypatch.context() as patched:
            patched.setattr(shadow, "put", held.append)
            assert (await running.client.post("/v2/models/m/infer", json=body)).status_code == 200
        put(path, pin, {"origin": "EWR"}, "2013-01-01 12:00:01", {"temp": 99.0})
        shadow.put(*held)
        await running.shadows_done()
    champion, challenger = home.events(Response)
    assert (champion.arm, challenger.arm) == ("champion", "challenger")
    assert champion.features == challenger.features
    assert challenger.features[0].values == [[39.5]]
    assert challenger.degraded == []
