"""Following routes on a real PostgreSQL: told, polled, and without it in every way a server can be away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psycopg
import pytest

from tests.postgres import PostgresServer, running_postgres
from tests.serving.conftest import TOKEN, Installation, Running, Start, make_control_db

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may kill; each leaves it running."""
    with running_postgres() as server:
        make_control_db(server.url("postgres"))
        yield server


@pytest.fixture
def home_of_own(tmp_path: Path, own_server: PostgresServer) -> Installation:
    return Installation(tmp_path / "own", own_server.new_database("postgres"))


async def told_in(running: Running, home: Installation) -> float:
    """Seconds from a route's commit until this worker obeys it."""
    now = running.gateway.table.plans["m"].route.champion
    home.publish(champion=home.challenger if now == home.champion else home.champion)
    return await running.until(lambda: running.gateway.table.plans["m"].route.version == home.version)


async def test_a_new_route_is_told_and_nobody_waits_for_a_poll(home_on_postgres: Installation, start: Start) -> None:
    home_on_postgres.publish()
    async with start(at=home_on_postgres, route_poll_ms=30_000) as running:
        seconds = [await told_in(running, home_on_postgres) for _ in range(3)]
        assert (await running.client.get("/v1/routes")).json()["database"] == "ok"
    assert min(seconds) < 1.0, "the least of three: the machine may have been busy with something else"


async def test_polling_finds_the_route_that_nobody_told(home_on_postgres: Installation, start: Start) -> None:
    """As behind a connection pooler, which takes LISTEN and never delivers."""
    home_on_postgres.publish()
    with psycopg.connect(home_on_postgres.control_url) as connection:
        connection.execute("DROP TRIGGER route_told ON route")
    async with start(at=home_on_postgres, route_poll_ms=100) as running:
        assert min([await told_in(running, home_on_postgres) for _ in range(3)]) < 1.0


async def test_the_gateway_needs_no_right_but_to_read_the_routes(home_on_postgres: Installation, start: Start) -> None:
    home_on_postgres.publish()
    url = home_on_postgres.control_url
    with psycopg.connect(url) as connection:
        connection.execute("DROP ROLE IF EXISTS gateway")
        connection.execute("CREATE ROLE gateway LOGIN PASSWORD 'read'")
        connection.execute("GRANT SELECT ON route TO gateway")
    reader = "postgresql+psycopg://gateway:read@" + url.partition("@")[2]
    async with start(at=home_on_postgres, control_url=reader, route_poll_ms=30_000) as running:
        await told_in(running, home_on_postgres)
        assert running.gateway.table.source.error == ""
    with psycopg.connect(reader.replace("+psycopg", "")) as connection, pytest.raises(psycopg.Error):
        connection.execute("SELECT * FROM decision")


async def test_a_locked_table_keeps_nobody_waiting(home_on_postgres: Installation, start: Start) -> None:
    home = home_on_postgres
    home.publish("split", share_ppm=1_000_000)
    async with start(at=home) as running:
        with psycopg.connect(home.control_url) as locker:
            locker.execute("LOCK TABLE route IN ACCESS EXCLUSIVE MODE")
            await serves(running, seconds=1.5, arm="challenger")
            await rolls_back(running)
        home.publish()
        await running.in_force(home.version)


async def test_a_frozen_server_keeps_nobody_waiting_and_is_reported(
    home_of_own: Installation, own_server: PostgresServer, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.postgres_routes._SILENT_S", 0.5)
    home_of_own.publish("split", share_ppm=1_000_000)
    async with start(at=home_of_own) as running:
        with own_server.frozen():
            await serves(running, seconds=1.0, arm="challenger")
            await running.until(lambda: "no answer" in running.gateway.table.source.error)
            await rolls_back(running)
        home_of_own.publish()
        await running.in_force(home_of_own.version)


async def test_a_killed_server_is_done_without_and_followed_again(
    home_of_own: Installation, own_server: PostgresServer, start: Start
) -> None:
    home_of_own.publish("split", share_ppm=1_000_000)
    async with start(at=home_of_own) as running:
        for _ in range(2):
            own_server.kill()
            await running.until(lambda: running.gateway.table.source.error != "")
            await serves(running, seconds=0.3, arm="challenger")
            own_server.start()
            home_of_own.publish("split", share_ppm=1_000_000)
            await running.in_force(home_of_own.version)
            assert running.gateway.table.source.error == ""


async def test_a_gateway_started_while_the_server_is_away_serves_by_its_last_good_routes(
    home_of_own: Installation, own_server: PostgresServer, start: Start
) -> None:
    home_of_own.publish("split", share_ppm=1_000_000)
    async with start(at=home_of_own):
        pass
    own_server.kill()
    began = time.monotonic()
    async with start(at=home_of_own) as running:
        assert time.monotonic() - began < 20, "a server that is away is waited for a moment, not for ever"
        answer = (await running.infer()).json()["parameters"]
        assert (answer["arm"], answer["route_version"]) == ("challenger", 1)
        override = await rolls_back(running)
        own_server.start()
        # Back again, its newest route of the same rollout is outranked by what the gateway did meanwhile.
        home_of_own.publish("split", share_ppm=1_000_000)
        await running.in_force(2)
        assert running.gateway.table.plans["m"].effective.override == override
        home_of_own.publish("split", share_ppm=1_000_000, clears_overrides=[override])
        await running.in_force(3)
        assert (await running.infer()).json()["parameters"]["arm"] == "challenger"


async def test_a_database_that_is_not_set_up_yet_is_waited_for(
    tmp_path: Path, postgres: PostgresServer, start: Start
) -> None:
    home = Installation(tmp_path / "early", postgres.new_database())
    async with start(at=home) as running:
        assert 'relation "route" does not exist' in running.gateway.table.source.error
        make_control_db(home.control_url)
        home.publish()
        await running.until(lambda: "m" in running.gateway.table.plans)


async def serves(running: Running, *, seconds: float, arm: str) -> None:
    """Requests are answered, by this arm, for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = await running.infer()
        assert (answer.status_code, answer.json()["parameters"]["arm"]) == (200, arm)
        await anyio.sleep(0.02)  # the rhythm of a client


async def rolls_back(running: Running) -> str:
    """The challenger goes off by hand, with no database to ask."""
    done = await running.client.post("/v1/models/m/rollback", headers={"authorization": f"Bearer {TOKEN}"})
    assert done.status_code == 200
    assert (await running.infer()).json()["parameters"]["arm"] == "champion"
    return str(done.json()["override"])
