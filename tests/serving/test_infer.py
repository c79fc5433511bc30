"""Inference: routing, the order of events, shadow, fallback, retries."""

from __future__ import annotations

import anyio
import pytest

from pipelines.contracts.assignment import draw
from pipelines.contracts.events import Assignment, Response
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio


async def test_a_single_route_answers_with_its_champion_and_logs_before_and_after(
    home: Installation, start: Start
) -> None:
    home.publish(slice_inputs=["origin"])
    async with start() as running:
        answer = await running.infer("q1", x=[1.0, 2.0])
        assert answer.status_code == 200
        body = answer.json()
        events = home.events()
    assert body["id"] == "q1"
    assert body["model_name"] == "m"
    assert body["parameters"] == {
        "release": home.champion, "arm": "champion", "route_version": 1, "logged": True, "degraded": "",
    }  # fmt: skip
    outputs = {one["name"]: one for one in body["outputs"]}
    assert outputs["score"] == {"name": "score", "datatype": "FP64", "shape": [2], "data": [0.3, 0.3]}
    assert outputs["decision"]["data"] == [False, False]
    assignment, response = events
    assert (assignment.id.n, response.id.n) == (0, 1)
    assert (assignment.arm, assignment.mode, assignment.rollout_id, assignment.rows) == ("champion", "single", None, 2)
    assert assignment.inputs == {"x": [1.0, 2.0]}
    assert assignment.slices == {"origin": ""}
    assert (response.status, response.served, response.score, response.raw) == ("ok", True, [0.3, 0.3], [0.0, 0.0])
    assert response.latency_us >= response.model_us > 0


async def test_an_answer_without_a_client_id_gets_one_of_its_own(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        ids = {(await running.infer()).json()["id"] for _ in range(3)}
        assert ids == {event.request_id for event in home.events(Assignment)}
    assert len(ids) == 3


async def test_a_split_draws_each_unit_as_published_and_a_higher_share_only_adds_units(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=200_000, stage="canary_20")
    drawn: dict[int, set[str]] = {}
    async with start() as running:
        for version, share in ((1, 200_000), (2, 500_000)):
            if version == 2:
                home.publish("split", share_ppm=share, stage="canary_50")
                await running.in_force(2)
            drawn[share] = set()
            for k in range(60):
                parameters = (await running.infer(parameters={"unit": f"u{k}"})).json()["parameters"]
                assert parameters["arm"] == draw("salt", f"u{k}", share)
                assert (
                    parameters["release"]
                    == {"champion": home.champion, "challenger": home.challenger}[parameters["arm"]]
                )
                if parameters["arm"] == "challenger":
                    drawn[share].add(f"u{k}")
    assert drawn[200_000] < drawn[500_000]
    assert all(event.rollout_id == "r1" and event.paired for event in home.events(Assignment))


async def test_a_repeated_id_keeps_its_first_arm_when_the_share_moves_and_is_marked_a_retry(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=0)
    async with start() as running:
        first = (await running.infer("q1")).json()["parameters"]
        home.publish("split", share_ppm=1_000_000)
        await running.in_force(2)
        again = (await running.infer("q1")).json()["parameters"]
        other = (await running.infer("q2")).json()["parameters"]
        await running.shadows_done()
    assert (first["arm"], again["arm"], other["arm"]) == ("champion", "champion", "challenger")
    assert [(event.request_id, event.retry) for event in home.events(Assignment)] == [
        ("q1", False), ("q1", True), ("q2", False),
    ]  # fmt: skip


async def test_an_id_forgotten_by_the_bounded_memory_is_drawn_anew(home: Installation, start: Start) -> None:
    home.publish()
    async with start(limits={"remembered_ids": 2}) as running:
        for request_id in ("a", "b", "c", "a", "c"):
            await running.infer(request_id)
    assert [(one.request_id, one.retry) for one in home.events(Assignment)] == [
        ("a", False), ("b", False), ("c", False), ("a", False), ("c", True),
    ]  # fmt: skip


async def test_in_shadow_the_challenger_scores_after_the_answer_has_left(home: Installation, start: Start) -> None:
    slow = home.release(0.7, sleep_s=0.3, semver="1.2.0")
    home.publish("shadow", challenger=slow, stage="shadow")
    async with start() as running:
        answer = await running.infer("q1")
        assert answer.json()["parameters"]["arm"] == "champion"
        at_answer = home.events(Response)
        assert [one.arm for one in at_answer] == ["champion"]
        await running.shadows_done()
    champion, challenger = home.events(Response)
    assert (champion.served, champion.shadow) == (True, False)
    assert (challenger.served, challenger.shadow, challenger.release) == (False, True, slow)
    assert challenger.latency_us > 300_000 > champion.latency_us
    assert home.events(Assignment)[0].paired


async def test_a_full_shadow_queue_sheds_promises_nothing_and_counts_it(home: Installation, start: Start) -> None:
    slow = home.release(0.7, sleep_s=1.0, semver="1.2.0")  # all three are asked while the first is still scored
    home.publish("shadow", challenger=slow)
    async with start(limits={"shadow_queue": 1}) as running:
        for k in range(3):
            assert (await running.infer(f"q{k}")).status_code == 200
        metrics = (await running.client.get("/metrics")).text
        await running.shadows_done()
    paired = [one.paired for one in home.events(Assignment)]
    assert paired == [True, False, False]
    assert [(one.mode, one.rollout_id) for one in home.events(Assignment)] == [
        ("shadow", "r1"), ("single", None), ("single", None),
    ]  # fmt: skip
    assert sum(one.shadow for one in home.events(Response)) == 1
    assert 'slipway_shadow_shed_total{model="m"} 2.0' in metrics


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ({"error": True}, "error", "built to fail"),
        ({"invalid": True}, "invalid", ""),
        ({"sleep_s": 0.5}, "error", "timeout after 100 ms"),
    ],
)
async def test_a_failing_challenger_is_answered_for_by_the_champion_in_the_same_request(
    home: Installation, start: Start, fault: dict[str, object], status: str, text: str
) -> None:
    from pipelines.contracts.routes import Breaker

    bad = home.release(0.7, semver="2.0.0", **fault)
    timeout_ms = 100 if "timeout" in text else 30_000  # a busy machine is no fault of the challenger
    home.publish("split", challenger=bad, share_ppm=1_000_000, breaker=Breaker(timeout_ms=timeout_ms))
    async with start() as running:
        answer = await running.infer("q1")
        assert answer.status_code == 200
        assert answer.json()["parameters"]["arm"] == "champion"
        assert answer.json()["parameters"]["release"] == home.champion
    assert home.events(Assignment)[0].arm == "challenger"
    failed, served = home.events(Response)
    assert (failed.arm, failed.status, failed.served, failed.fallback) == ("challenger", status, False, False)
    assert text in failed.error
    assert (served.arm, served.status, served.served, served.fallback) == ("champion", "ok", True, True)


async def test_outputs_that_no_log_can_carry_are_the_releases_failure(home: Installation, start: Start) -> None:
    import numpy as np

    home.publish("split", share_ppm=1_000_000)
    async with start() as running:
        challenger = running.gateway.table.plans["m"].challenger
        assert challenger is not None
        challenger.release._apply = lambda raw, inputs, params: {"score": raw + 0.5, "decision": np.array([{}])}
        assert (await running.infer()).json()["parameters"]["arm"] == "champion"
        challenger.release._apply = lambda raw, inputs, params: {
            "score": raw + 0.5,
            "decision": np.array([True, False]),
        }
        assert (await running.infer()).json()["parameters"]["arm"] == "champion"
    errors = [one.error for one in home.events(Response) if one.arm == "challenger"]
    assert "decision; got object; expected numbers" in errors[0]
    assert "decision; got (2,); expected (1,)" in errors[1]


async def test_a_failing_champion_is_a_500_with_its_events_written(home: Installation, start: Start) -> None:
    bad = home.release(0.3, semver="3.0.0", error=True)
    home.publish("shadow", champion=bad, challenger=home.champion)
    async with start() as running:
        answer = await running.infer("q1")
        assert answer.status_code == 500
        assert "built to fail" in answer.json()["error"]
        await running.shadows_done()
    assert [(one.arm, one.status, one.shadow) for one in home.events(Response)] == [
        ("champion", "error", False), ("challenger", "ok", True),
    ]  # fmt: skip


async def test_a_pinned_version_answers_by_digest_and_semver_and_leaves_no_event(
    home: Installation, start: Start
) -> None:
    home.publish()
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    async with start() as running:
        for version in (home.challenger, "1.1.0"):
            answer = await running.client.post(f"/v2/models/m/versions/{version}/infer", json=body)
            assert answer.status_code == 200
            parameters = answer.json()["parameters"]
            assert (parameters["release"], parameters["arm"], parameters["logged"]) == (
                home.challenger,
                "pinned",
                False,
            )
        wrong = await running.client.post("/v2/models/m/versions/1.2.0/infer", json=body)
        assert wrong.status_code == 404
        assert "1.1.0" in wrong.json()["error"]
        other_model = await running.client.post(f"/v2/models/n/versions/{home.challenger}/infer", json=body)
        assert other_model.status_code == 404
    assert home.events() == []


async def test_a_version_that_hangs_holds_up_nobody_else(home: Installation, start: Start) -> None:
    home.publish()
    home.release(0.7, semver="2.0.0", sleep_s=1.0)
    body = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    answered: list[str] = []
    async with start(limits={"pinned_timeout_s": 0.4}) as running:

        async def hanging() -> None:
            answer = await running.client.post("/v2/models/m/versions/2.0.0/infer", json=body)
            assert answer.status_code == 500
            assert "timeout after 400 ms" in answer.json()["error"]
            answered.append("hanging")

        assert (await running.client.get("/v2/models/m/versions/2.0.0")).status_code == 200  # it is loaded
        async with anyio.create_task_group() as group:
            group.start_soon(hanging)
            for k in range(5):
                await anyio.sleep(0.01)  # so that the call by version has come
                assert (await running.infer(f"q{k}")).status_code == 200
                answered.append("q")
    assert answered == ["q"] * 5 + ["hanging"]


async def test_under_replay_a_request_must_say_when_it_happens_and_under_wall_it_must_not(
    home: Installation, start: Start
) -> None:
    home.publish()
    at = {"event_time": "2013-01-01T05:15:00Z"}
    async with start(clock="replay") as running:
        assert (await running.infer("q0")).status_code == 400
        assert (await running.infer("q1", parameters={"event_time": "noon"})).status_code == 400
        assert (await running.infer("q2", parameters=at)).status_code == 200
    (assignment,) = home.events(Assignment)
    assert assignment.event_us == 1_357_017_300_000_000
    async with start() as running:
        refused = await running.infer("q3", parameters=at)
        assert refused.status_code == 400
        assert "wall" in refused.json()["error"]


async def test_requested_outputs_alone_are_sent(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running:
        answer = await running.infer(outputs=[{"name": "decision"}])
        assert [one["name"] for one in answer.json()["outputs"]] == ["decision"]
        assert (await running.infer(outputs=[{"name": "nothing"}])).status_code == 400
    assert len(home.events(Assignment)) == 1
