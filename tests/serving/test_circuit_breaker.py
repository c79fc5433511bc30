"""The circuit breaker and the rollback call: exposure is reduced here and now, kept, and cleared by a decision."""

from __future__ import annotations

import json

import pytest

from pipelines.contracts.events import Assignment, Override, Response
from pipelines.contracts.routes import Breaker
from serving.circuit_breaker import CallWindow
from tests.serving.conftest import TOKEN, Installation, Start

pytestmark = pytest.mark.anyio

BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("calls", "tripped_at"),
    [
        ("FFF", 3),
        ("FF" + "." * 8 + "F", None),
        ("F.F.F", 5),
        ("." * 50 + "FF" + "." * 7 + "F", 60),
        ("." * 50 + "FF" + "." * 8 + "F", None),
    ],
)
def test_the_window_trips_when_enough_of_its_last_calls_failed(calls: str, tripped_at: int | None) -> None:
    window = CallWindow(Breaker(window=10, failures=3))
    first = next((k for k, call in enumerate(calls, 1) if window.record(failed=call == "F")), None)
    assert first == tripped_at


@pytest.mark.parametrize("mode", ["split", "shadow"])
async def test_a_challenger_past_its_bound_goes_off_and_stays_off_over_a_restart(
    home: Installation, start: Start, mode: str
) -> None:
    bad = home.release(0.7, semver="2.0.0", error=True)
    share = {"share_ppm": 1_000_000} if mode == "split" else {}
    home.publish(mode, challenger=bad, breaker=Breaker(window=10, failures=3), **share)
    async with start() as running:
        for k in range(6):
            assert (await running.infer(f"q{k}")).json()["parameters"]["release"] == home.champion
            await running.shadows_done()
        (override,) = home.events(Override)
        assert (override.rollout_id, override.action, override.actor) == ("r1", "challenger_off", "circuit-breaker")
        assert "3 of the last 3 challenger calls failed (bound: 3 of 10)" in override.reason
        assert running.gateway.table.plans["m"].effective.override == str(override.id)
        await running.until(lambda: any(running.gateway.overrides.folder.glob("*.json")))
    assert sum(event.arm == "challenger" for event in home.events(Response)) == 3
    # From the override on, no request belongs to the rollout.
    assert [event.rollout_id for event in home.events(Assignment)] == ["r1"] * 3 + [None] * 3
    async with start() as running:
        assert (await running.infer("later")).json()["parameters"]["arm"] == "champion"
        assert running.gateway.table.plans["m"].effective.override == str(override.id)
    assert home.events(Assignment)[-1].mode == "single"
    assert len(home.events(Override)) == 1


BAD = {"error": {"error": True}, "invalid": {"high": 0.5}, "late": {"sleep_s": 0.02}}


@pytest.mark.parametrize("fault", [*BAD, "none"])
async def test_while_it_bakes_a_challenger_past_its_bound_gives_way_to_the_fallback(
    home: Installation, start: Start, fault: str
) -> None:
    baking = home.release(0.7, semver="2.0.0", **BAD.get(fault, {}))
    timeout_ms = 10 if fault == "late" else 60_000
    breaker = Breaker(window=10, failures=3, timeout_ms=timeout_ms)
    home.publish(champion=baking, fallback=home.champion, rollout_id="r1", stage="bake", breaker=breaker)
    async with start() as running:
        releases = [(await running.infer(f"q{k}")).json().get("parameters", {}).get("release") for k in range(5)]
    if fault == "none":
        assert (releases, home.events(Override)) == ([baking] * 5, [])
        return
    assert releases == [None if fault == "error" else baking] * 3 + [home.champion] * 2
    (override,) = home.events(Override)
    assert (override.rollout_id, override.action, override.withdrawn) == ("r1", "champion_to_fallback", baking)
    assert (override.actor, override.reason[:46]) == (
        "circuit-breaker",
        "3 of the last 3 challenger calls failed (bound",
    )
    assert [event.rollout_id for event in home.events(Assignment)] == ["r1"] * 3 + [None] * 2


async def test_a_champion_of_long_standing_is_never_withdrawn_by_the_breaker(home: Installation, start: Start) -> None:
    failing = home.release(0.7, semver="2.0.0", error=True)
    home.publish(champion=failing, fallback=home.champion, breaker=Breaker(window=10, failures=3))
    async with start() as running:
        assert {(await running.infer(f"q{k}")).status_code for k in range(5)} == {500}
    assert home.events(Override) == []


async def test_a_hanging_challenger_costs_nobody_an_answer_and_is_switched_off(
    home: Installation, start: Start
) -> None:
    import anyio

    hanging = home.release(0.7, semver="2.0.0", sleep_s=1.0)
    home.publish(
        "split", challenger=hanging, share_ppm=1_000_000, breaker=Breaker(window=10, failures=3, timeout_ms=80)
    )
    answers: list[dict[str, object]] = []
    async with start() as running:

        async def one(k: int) -> None:
            answers.append((await running.infer(f"q{k}")).json()["parameters"])

        async with anyio.create_task_group() as group:
            for k in range(12):
                group.start_soon(one, k)
        assert [one["arm"] for one in answers] == ["champion"] * 12
        assert running.gateway.table.plans["m"].effective.override is not None
    served = [event for event in home.events(Response) if event.served]
    assert len(served) == 12
    assert len(home.events(Override)) == 1


async def test_an_override_outranks_every_route_of_its_rollout_until_a_route_names_it(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        done = await running.client.post(
            "/v1/models/m/rollback", headers=BEARER, json={"reason": "smoke", "actor": "ann"}
        )
        assert done.status_code == 200
        override_id = done.json()["override"]
        home.publish("split", share_ppm=500_000)
        await running.in_force(2)
        assert running.gateway.table.plans["m"].effective.mode == "single"
        home.publish("split", share_ppm=1_000_000, clears_overrides=[override_id])
        await running.in_force(3)
        assert (await running.infer("q")).json()["parameters"]["arm"] == "challenger"
        # A later route need not name it again, after a restart neither.
        home.publish("split", share_ppm=1_000_000)
        await running.in_force(4)
        assert running.gateway.table.plans["m"].effective.override is None
    async with start() as running:
        assert running.gateway.table.plans["m"].effective.override is None


async def test_a_challenger_switched_off_is_not_let_in_by_a_promotion_that_was_already_on_its_way(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=500_000)
    async with start() as running:
        await running.client.post("/v1/models/m/rollback", headers=BEARER)
        home.publish(champion=home.challenger, fallback=home.champion, rollout_id="r1", stage="bake")
        await running.in_force(2)
        assert (await running.infer("q")).json()["parameters"]["release"] == home.champion


async def test_without_a_rollout_the_rollback_call_brings_the_fallback(home: Installation, start: Start) -> None:
    home.publish(champion=home.challenger, fallback=home.champion)
    async with start() as running:
        done = await running.client.post(
            "/v1/models/m/rollback", headers=BEARER, json={"actor": "ann", "reason": "bad"}
        )
        assert done.json()["action"] == "champion_to_fallback"
        assert done.json()["serving"] == home.champion
        again = await running.client.post("/v1/models/m/rollback", headers=BEARER)
        assert (again.status_code, again.json()["override"]) == (200, done.json()["override"])
        assert (await running.infer("q")).json()["parameters"]["release"] == home.champion
        routes = (await running.client.get("/v1/routes")).json()["routes"]
        assert routes[0]["overrides"][0]["actor"] == "ann"
    (override,) = home.events(Override)
    assert (override.rollout_id, override.reason, override.actor) == (None, "bad", "ann")


async def test_a_rollback_is_durable_and_shared_before_it_is_confirmed(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=500_000)
    async with start() as running, start(gateway_name="gw0") as second_worker:
        done = await running.client.post("/v1/models/m/rollback", headers=BEARER)
        (file,) = running.gateway.overrides.folder.glob("*.json")
        assert str(json.loads(file.read_text())["event"]["id"][0]) == "gw0"
        await second_worker.until(
            lambda: second_worker.gateway.table.plans["m"].effective.override == done.json()["override"]
        )
        assert (await second_worker.infer("q")).json()["parameters"]["arm"] == "champion"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Basic c2VzYW1l"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer sesam"}, 403),
        ({"authorization": "Bearer sésame".encode("latin-1").decode("latin-1")}, 403),
    ],
)
async def test_a_rollback_needs_the_token(
    home: Installation, start: Start, headers: dict[str, str], status: int
) -> None:
    home.publish("split", share_ppm=500_000)
    encoded = {key.encode(): value.encode("latin-1") for key, value in headers.items()}
    async with start() as running:
        refused = await running.client.post("/v1/models/m/rollback", headers=encoded)
        assert refused.status_code == status
        assert "authorization" in refused.json()["error"]
        if status == 401:
            assert refused.headers["www-authenticate"] == "Bearer"
        assert running.gateway.table.plans["m"].effective.override is None
    assert home.events() == []


async def test_a_gateway_without_a_token_refuses_every_rollback(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=500_000)
    async with start(token="") as running:
        assert (await running.client.post("/v1/models/m/rollback", headers=BEARER)).status_code == 403


async def test_the_reason_of_a_rollback_is_a_sentence_and_no_book(home: Installation, start: Start) -> None:
    home.publish("split", share_ppm=500_000)
    async with start() as running:
        body = {"reason": "x" * 1001}
        refused = await running.client.post("/v1/models/m/rollback", headers=BEARER, json=body)
        assert refused.status_code == 400
        assert "1000" in refused.json()["error"]
        assert running.gateway.table.plans["m"].effective.override is None


async def test_a_model_with_nothing_to_go_back_to_is_a_conflict(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        refused = await running.client.post("/v1/models/m/rollback", headers=BEARER)
        assert refused.status_code == 409
        assert "neither challenger nor fallback" in refused.json()["error"]
