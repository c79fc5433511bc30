"""Requests that come in one turn of the loop: answered together, each as if it were alone."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from pipelines.contracts import events, segments
from pipelines.contracts.events import ARMS, Assignment, Response
from pipelines.contracts.routes import Breaker
from serving import short_way
from serving.arms import _PROVEN
from serving.infer import count_baking
from serving.models import LoadedModel
from serving.row_by_row import MOST_ROWS, scores_row_by_row
from serving.scoring import Outcome
from tests.serving.conftest import Installation, Running, Start
from tests.serving.test_arms import HARMFUL, HARMLESS
from tests.serving.test_direct import Client, connected, post, served

pytestmark = pytest.mark.anyio

_ALL = 1 << 30


class Turn:
    """Clients that send at the same moment, and what the gateway did for it: events a write, rows a call of a model."""

    def __init__(self, running: Running, clients: list[Client], patch: pytest.MonkeyPatch) -> None:
        self.clients = clients
        self.writes: list[int] = []
        self.calls: list[int] = []
        self.most = _ALL  # bytes that the next write takes
        write, plan = os.write, running.gateway.table.plans["m"]

        def counted_write(descriptor: int, data: bytes) -> int:
            if b"kind" not in data:
                return write(descriptor, data)
            taken, self.most = bytes(data[: self.most]), _ALL
            self.writes.append(sum(1 for _ in segments.parse(taken)))
            return write(descriptor, taken)

        patch.setattr(os, "write", counted_write)
        self.challenger_calls: list[int] = []
        patch.setattr(plan.champion, "predict", self._counted(plan.champion, self.calls))
        if plan.challenger is not None:
            patch.setattr(plan.challenger, "predict", self._counted(plan.challenger, self.challenger_calls))
            for arm in ARMS * _PROVEN:
                plan.pace.note(arm, Outcome("ok", 1))
            assert plan.pace.at_once

    def _counted(self, model: LoadedModel, calls: list[int]) -> Any:
        predict = model.predict

        def counted(matrix: np.ndarray) -> np.ndarray:
            calls.append(len(matrix))
            return predict(matrix)

        return counted

    async def ask(self, *requests: bytes) -> list[tuple[int, dict[str, Any]]]:
        """Each client sends one request, all before the loop reads again; status and body of each answer."""
        self.writes.clear()
        self.calls.clear()
        self.challenger_calls.clear()
        for client, request in zip(self.clients, requests, strict=True):
            client.send(request)
        answers = [await client.answer() for client in self.clients]
        return [(status, json.loads(body)) for status, _, body in answers]


@asynccontextmanager
async def together(running: Running, clients: int) -> AsyncIterator[Turn]:
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(served(running, keep_alive_s=600))  # second arms may be waited for
        connections = [await stack.enter_async_context(connected(port)) for _ in range(clients)]
        with pytest.MonkeyPatch.context() as patch:
            # A busy machine is no reason to part them, nor to think that a challenger hangs.
            patch.setattr(short_way, "_TOGETHER_S", 600.0)
            patch.setattr("serving.arms._ALARM_S", 600.0)
            turn = Turn(running, connections, patch)
            for client in connections:  # the server has accepted them all, and knows what a request costs
                client.send(post("warm"))
                await client.answer()
            await running.shadows_done()
            yield turn


async def test_requests_of_one_turn_share_two_writes_and_one_call_and_get_the_scores_they_get_alone(
    home: Installation, start: Start
) -> None:
    home.publish(champion=home.release(0.1, slope=0.01))
    values = [0.5 + k / 7 for k in range(8)]
    async with start() as running:
        alone = [(await running.infer(f"alone{k}", x)).json() for k, x in enumerate(values)]
        async with together(running, 8) as turn:
            answers = await turn.ask(*(post(f"q{k}", x=x) for k, x in enumerate(values)))
            assert turn.writes == [8, 8]
            assert turn.calls == [8]
    for k, ((status, answer), single) in enumerate(zip(answers, alone, strict=True)):
        assert (status, answer["id"]) == (200, f"q{k}")
        assert answer["outputs"] == single["outputs"]
        assert answer["parameters"] == single["parameters"]
    logged = home.events()[-16:]
    assert [type(event) for event in logged] == [Assignment] * 8 + [Response] * 8
    assert [event.id.n for event in logged] == list(range(logged[0].id.n, logged[0].id.n + 16))
    responses = {event.request_id: event for event in home.events(Response)}
    for k, x in enumerate(values):
        assert responses[f"q{k}"].raw == responses[f"alone{k}"].raw
        assert next(event.inputs["x"] for event in logged if event.request_id == f"q{k}") == [x]


async def test_what_is_wrong_with_one_request_stays_with_it(home: Installation, start: Start) -> None:
    home.publish(champion=home.release(0.2, error_share=0.5))
    async with start() as running, together(running, 5) as turn:
        asked = [
            post("good", x=HARMLESS),
            post("fails", x=HARMFUL),
            post("text", x="a"),
            post("n", path="/v2/models/n/infer"),
            post("last", x=HARMLESS),
        ]
        answers = await turn.ask(*asked)
    assert [status for status, _ in answers] == [200, 500, 400, 404, 200]
    assert [answers[k][1]["id"] for k in (0, 4)] == ["good", "last"]
    outcomes = {event.request_id: event.status for event in home.events(Response)}
    assert [outcomes.get(name) for name in ("good", "fails", "text", "last")] == ["ok", "error", None, "ok"]


async def test_requests_that_wait_for_a_turn_are_not_in_flight(home: Installation, start: Start) -> None:
    home.publish()
    async with start(limits={"max_inflight": 2}) as running, together(running, 6) as turn:
        assert [status for status, _ in await turn.ask(*(post(f"q{k}") for k in range(6)))] == [200] * 6
        assert running.app.admission.inflight == 0


async def test_an_id_that_comes_twice_in_one_turn_is_a_retry(home: Installation, start: Start) -> None:
    home.publish()
    async with start() as running, together(running, 2) as turn:
        await turn.ask(post("same"), post("same"))
    assert [event.retry for event in home.events(Assignment) if event.request_id == "same"] == [False, True]


async def test_what_a_full_disk_took_of_a_turn_is_logged_and_the_rest_is_answered_unlogged(
    home: Installation, start: Start
) -> None:
    home.publish()
    async with start() as running, together(running, 4) as turn:
        await turn.ask(*(post(f"a{k}") for k in range(4)))
        before = len(home.events())
        frame = len(segments.frame(0, events.encode(home.events(Assignment)[-1])))
        turn.most = 2 * frame + 10
        answers = await turn.ask(*(post(f"b{k}") for k in range(4)))
        assert turn.writes[0] == 2
        assert [answer["parameters"]["logged"] for _, answer in answers] == [True, True, False, False]
        answers = await turn.ask(*(post(f"c{k}") for k in range(4)))
        assert all(answer["parameters"]["logged"] for _, answer in answers)
    found = home.events()
    assert [event.id.n for event in found] == list(range(len(found)))
    assert [event.request_id for event in found[before:]] == ["b0", "b1"] * 2 + [f"c{k}" for k in range(4)] * 2


async def test_second_arms_of_a_turn_are_scored_together_too_after_the_answers(
    home: Installation, start: Start
) -> None:
    home.publish("shadow")
    async with start() as running, together(running, 6) as turn:
        answers = await turn.ask(*(post(f"q{k}") for k in range(6)))
        assert [answer["parameters"]["arm"] for _, answer in answers] == ["champion"] * 6
        await running.shadows_done()
        assert (turn.writes, turn.calls, turn.challenger_calls) == ([6, 6, 4, 2], [6], []), "not in this process"
    seconds = [event for event in home.events()[-6:] if isinstance(event, Response)]
    assert [(event.request_id, event.arm, event.shadow) for event in seconds] == [
        (f"q{k}", "challenger", True) for k in range(6)
    ]


async def test_in_shadow_the_champion_is_scored_as_if_it_were_alone_and_pairs_are_logged_few_at_a_time(
    home: Installation, start: Start
) -> None:
    home.publish("shadow")
    async with start(limits={"shadow_queue": 11}) as running, together(running, 21) as turn:
        answers = await turn.ask(*(post(f"q{k}") for k in range(21)))
        assert [status for status, _ in answers] == [200] * 21
        await running.shadows_done()
        assert (turn.calls, turn.challenger_calls) == ([21], [])
        # Eleven have their pair.
        assert turn.writes == [21, 21, 4, 4, 3]


async def test_while_arms_are_drawn_every_request_is_scored_alone_so_that_no_arm_has_the_smaller_company(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=300_000)
    async with start() as running, together(running, 12) as turn:
        answers = await turn.ask(*(post(f"q{k}") for k in range(12)))
        arms = [answer["parameters"]["arm"] for _, answer in answers]
        assert set(arms) == {"champion", "challenger"}
        assert turn.writes[:2] == [12, 12], "events of a kind are still written together"
        await running.shadows_done()
        assert len(turn.calls) + len(turn.challenger_calls) == 12
        assert {*turn.calls, *turn.challenger_calls} == {1}


async def test_where_all_requests_are_the_challengers_they_are_scored_together_and_a_failed_challenger_is_answered_for(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=1_000_000, challenger=home.release(0.7, error_share=0.5))
    async with start() as running, together(running, 4) as turn:
        xs = [HARMLESS, HARMFUL, HARMLESS, HARMLESS]
        answers = await turn.ask(*(post(f"q{k}", x=x) for k, x in enumerate(xs)))
        assert [status for status, _ in answers] == [200] * 4
        assert [answer["id"] for _, answer in answers] == [f"q{k}" for k in range(4)]
        arms = [answer["parameters"]["arm"] for _, answer in answers]
        assert arms == ["challenger", "champion", "challenger", "challenger"]
        await running.shadows_done()
        assert (turn.calls, turn.challenger_calls[0]) == ([1], 4), "together, and one by one since one fails"
    of_q1 = [event for event in home.events(Response) if event.request_id == "q1"]
    assert [(event.arm, event.status, event.served, event.fallback) for event in of_q1] == [
        ("challenger", "error", False, False),
        ("champion", "ok", True, True),
    ]


async def test_failures_of_a_challenger_that_bakes_are_counted_in_company_too(home: Installation, start: Start) -> None:
    baking = home.release(0.7, semver="1.2.0", error_share=0.5)
    breaker = Breaker(failures=3, timeout_ms=60_000)
    home.publish(champion=baking, fallback=home.champion, rollout_id="r1", stage="bake", breaker=breaker)
    async with start() as running, together(running, 4) as turn:
        assert [status for status, _ in await turn.ask(*(post(f"a{k}", x=HARMFUL) for k in range(4)))] == [500] * 4
        after = await turn.ask(*(post(f"b{k}", x=HARMFUL) for k in range(4)))
        assert {answer["parameters"]["release"] for _, answer in after} == {home.champion}


async def test_a_company_that_came_late_was_held_up_once(home: Installation, start: Start) -> None:
    breaker = Breaker(failures=2, timeout_ms=50)
    home.publish(champion=home.challenger, fallback=home.champion, rollout_id="r1", stage="bake", breaker=breaker)
    async with start() as running:
        for standing in (True, False):
            plan = running.gateway.table.plans["m"]
            count_baking(running.gateway, plan, [Outcome("ok", 50_001)] * 8)
            assert (running.gateway.standing_override("m") is None) == standing


async def test_a_challengers_answer_of_a_turn_that_the_log_did_not_take_is_not_given(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=1_000_000)
    async with start() as running, together(running, 4) as turn:
        await turn.ask(*(post(f"a{k}") for k in range(4)))
        await running.shadows_done()
        frames = [len(segments.frame(0, events.encode(one))) for one in home.events() if one.request_id == "a0"]
        response = frames[1]
        write_all, log = running.gateway.log.write_all, running.gateway.log

        def cut(written: Any) -> None:
            turn.most = 2 * response + 20 if isinstance(written[0], Response) and len(written) == 4 else _ALL
            write_all(written)

        log.write_all = cut
        answers = await turn.ask(*(post(f"b{k}") for k in range(4)))
        arms = [answer["parameters"]["arm"] for _, answer in answers]
        assert arms == ["challenger", "challenger", "champion", "champion"]
        assert all(answer["parameters"]["logged"] for _, answer in answers)
        await running.shadows_done()
    found = home.events()
    assert [event.id.n for event in found] == list(range(len(found)))
    served = {event.request_id: event.arm for event in found if isinstance(event, Response) and event.served}
    assert [served[f"b{k}"] for k in range(4)] == arms


async def test_a_model_whose_bits_depend_on_its_company_is_asked_for_each_request_alone(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.publish()
    async with start() as running:
        monkeypatch.setattr(running.gateway.table.plans["m"].champion, "row_by_row", False)
        async with together(running, 3) as turn:
            assert [status for status, _ in await turn.ask(*(post(f"q{k}") for k in range(3)))] == [200] * 3
            assert turn.calls == [1, 1, 1]
            assert turn.writes == [3, 3]


@pytest.mark.parametrize("size", [2, 7, MOST_ROWS])
def test_a_model_that_rounds_otherwise_at_any_size_of_batch_is_found_out(size: int) -> None:
    def model(matrix: np.ndarray) -> np.ndarray:
        scores = matrix.sum(axis=1, dtype=np.float64)
        if len(matrix) == size:
            scores[-1] = np.nextafter(scores[-1], np.inf)
        return scores

    def plain(matrix: np.ndarray) -> np.ndarray:
        return matrix.sum(axis=1, dtype=np.float64)

    sample = np.array([[0.25, np.nan, 1e6]], dtype=np.float32)
    assert scores_row_by_row(plain, sample[:, [0, 2]])
    assert not scores_row_by_row(model, sample[:, [0, 2]])
