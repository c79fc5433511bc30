"""Following routes: from the control database, without it, and past releases that cannot be loaded."""

from __future__ import annotations

import shutil
import sqlite3
import time

import pytest

from tests.serving.conftest import TOKEN, Installation, Start

pytestmark = pytest.mark.anyio


async def test_a_new_route_is_obeyed_within_a_second_and_told(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        seconds = []
        for release in (home.challenger, home.champion, home.challenger):
            home.publish(champion=release)
            seconds.append(await running.until(lambda: running.gateway.table.plans["m"].route.version == home.version))
            assert (await running.infer()).json()["parameters"]["release"] == release
        routes = (await running.client.get("/v1/routes")).json()
    assert min(seconds) < 1.0, "the least of three: the machine may have been busy with something else"
    assert (routes["routes"][0]["version"], routes["routes"][0]["route"]["champion"]) == (4, home.challenger)
    assert (routes["database"], routes["pending"], routes["load_errors"]) == ("ok", [], {})


async def test_the_gateway_starts_without_a_database_and_takes_the_first_route_when_it_comes(
    home: Installation, start: Start
) -> None:
    async with start() as running:
        assert (await running.client.get("/v2/health/ready")).status_code == 200
        assert (await running.infer()).status_code == 404
        home.publish()
        await running.until(lambda: "m" in running.gateway.table.plans)
        assert (await running.infer()).status_code == 200


async def test_the_last_good_routes_are_followed_when_the_database_is_gone(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        assert (await running.infer()).json()["parameters"]["arm"] == "challenger"
    for file in home.home.glob("control.db*"):
        file.unlink()
    async with start() as running:
        answer = (await running.infer()).json()["parameters"]
        assert (answer["arm"], answer["route_version"]) == ("challenger", 1)
        assert (await running.client.get("/v1/routes")).json()["database"] != "ok"
        # And the database made anew is followed again.
        home.publish()
        await running.in_force(2)


async def test_a_locked_or_broken_database_stops_nobody(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        locker = sqlite3.connect(home.home / "control.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        assert (await running.infer()).status_code == 200
        locker.execute("ROLLBACK")
        locker.close()
        (home.home / "other.db").write_bytes(b"not a database" * 1000)
        (home.home / "other.db").replace(home.home / "control.db")
        await running.until(lambda: "not a database" in running.gateway.table.source.error)
        assert (await running.client.get("/v1/routes")).json()["database"] == "unreadable"
        assert (await running.infer()).status_code == 200


async def test_a_database_locked_for_seconds_keeps_neither_a_start_nor_an_override_waiting(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start():
        pass
    # In WAL mode a writer locks no reader out, unless it asks to be alone before anybody else has come.
    locker = sqlite3.connect(home.home / "control.db", isolation_level=None)
    locker.execute("PRAGMA locking_mode=EXCLUSIVE")
    locker.execute("BEGIN EXCLUSIVE")
    locker.execute("UPDATE route SET version = version")
    async with start() as running:
        assert (await running.infer()).json()["parameters"]["arm"] == "challenger"
        assert "locked" in running.gateway.table.source.error
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert (await running.infer()).status_code == 200
        rolled_back = await running.client.post("/v1/models/m/rollback", headers={"authorization": f"Bearer {TOKEN}"})
        assert rolled_back.json()["serving"] == home.champion
        locker.execute("COMMIT")
        locker.close()
        home.publish(champion=home.challenger)
        await running.in_force(2)


async def test_a_route_waits_for_its_releases_and_the_one_before_it_stands(home: Installation, start: Start) -> None:
    home.publish()
    later = home.release(0.9, semver="1.3.0")
    away = home.home / "away"
    shutil.move(home.home / "releases" / later, away)
    async with start() as running:
        home.publish(champion=later)
        await running.until(lambda: later in running.gateway.table.load_errors)
        assert (await running.infer()).json()["parameters"]["release"] == home.champion
        routes = (await running.client.get("/v1/routes")).json()
        assert routes["pending"] == [{"model": "m", "version": 2}]
        assert "expected a bundle" in routes["load_errors"][later]
        shutil.move(away, home.home / "releases" / later)
        running.gateway.table._failed_at.clear()
        await running.in_force(2)
        assert (await running.infer()).json()["parameters"]["release"] == later


async def test_a_changed_bundle_is_never_served(home: Installation, start: Start) -> None:
    home.publish()
    (home.home / "releases" / home.challenger / "postprocess.py").write_text("def apply(*_): return {'score': [9]}")
    async with start() as running:
        home.publish(champion=home.challenger)
        await running.until(lambda: home.challenger in running.gateway.table.load_errors)
        told = running.gateway.table.load_errors[home.challenger]
        assert told.startswith("postprocess.py; got ")
        assert (await running.infer()).json()["parameters"]["release"] == home.champion
        home.publish()
        await running.until(lambda: not running.gateway.table.load_errors)  # nothing names that release any more


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("release.json", None, "release; got {digest:.12}; expected a bundle in its folder"),
        ("postprocess.py", b"open('/nowhere/secret')", "postprocess.py; got FileNotFoundError; expected a module"),
        ("postprocess.py", b"apply = 1", "postprocess.py; got no function apply; expected def apply(...)"),
        ("sample_request.json", b"{", "infer request; got a body that is not JSON"),
        ("model.onnx", b"no model", "the model; got InvalidProtobuf; expected ONNX Runtime to take it"),
    ],
)
async def test_why_a_release_is_not_loaded_is_told_in_plain_words_and_without_the_hosts_paths(
    home: Installation, start: Start, file: str, content: bytes | None, said: str
) -> None:
    broken = home.rebuilt({file: content}) if content is not None else "0" * 64
    home.publish()
    async with start() as running:
        home.publish(champion=broken)
        await running.until(lambda: broken in running.gateway.table.load_errors)
        told = [(await running.client.get("/v1/routes")).json()["load_errors"][broken]]
        if content is not None:
            pinned = await running.client.post(f"/v2/models/m/versions/{broken}/infer", json={"inputs": []})
            assert pinned.status_code == 503
            told.append(pinned.json()["error"])
    for one in told:
        assert said.format(digest=broken) in one
        assert str(home.home) not in one
        assert "/nowhere" not in one


async def test_a_document_of_another_schema_is_skipped_and_the_route_before_it_stands(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running:
        connection = sqlite3.connect(home.home / "control.db")
        connection.execute("INSERT INTO route VALUES ('m', 2, '{\"schema\": \"slipway-route/9\"}')")
        connection.commit()
        connection.close()
        await running.until(lambda: "m: route" in running.gateway.table.source.error)
        assert (await running.client.get("/v1/routes")).json()["database"] == "a route is refused"
        assert (await running.infer()).json()["parameters"]["route_version"] == 1


async def test_a_challenger_may_ask_for_an_input_that_the_champion_does_not_know(
    home: Installation, start: Start
) -> None:
    from pipelines.contracts.events import Response
    from pipelines.contracts.release import InputField

    fields = [InputField(name="x", datatype="FP64", required=False), InputField(name="temp", datatype="FP64")]
    wider = home.release(0.8, semver="2.0.0", inputs=fields)
    home.publish("shadow", challenger=wider)
    temp = {"name": "temp", "datatype": "FP64", "shape": [1], "data": [3.5]}
    async with start() as running:
        with_it = await running.client.post("/v2/models/m/infer", json={"id": "a", "inputs": [temp]})
        without = await running.infer("b")
        assert (with_it.status_code, without.status_code) == (200, 200)
        await running.shadows_done()
    shadows = {one.request_id: one for one in home.events(Response) if one.shadow}
    assert shadows["a"].status == "ok"
    assert shadows["b"].status == "error"
    assert "input temp" in shadows["b"].error


async def test_metadata_describes_server_and_model(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        assert (await running.client.get("/v2")).json()["name"] == "slipway"
        assert (await running.client.get("/v2/health/live")).json() == {"live": True}
        described = (await running.client.get("/v2/models/m")).json()
        assert described["name"] == "m"
        assert described["versions"] == ["1.0.0", "1.1.0"]
        assert {"name": "origin", "datatype": "BYTES", "shape": [-1]} in described["inputs"]
        assert {"name": "decision", "datatype": "BOOL", "shape": [-1]} in described["outputs"]
        assert (await running.client.get("/v2/models/m/ready")).json()["ready"] is True
        assert (await running.client.get("/v2/models/m/versions/1.1.0/ready")).json()["ready"] is True
        assert (await running.client.get("/v2/models/n/ready")).status_code == 404
        metrics = await running.client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert 'slipway_route_version{model="m"} 1.0' in metrics.text
