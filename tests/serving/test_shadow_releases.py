"""Second arms of releases that do what nobody asked them to: each costs its own pairs, and no others."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from pipelines.contracts.events import NOT_COMPARED, Override
from pipelines.contracts.routes import Breaker
from serving import pairs as sending
from serving import shadow
from serving.exchange import Exchange
from tests.serving.conftest import Installation, Running, Start
from tests.serving.test_arms import HARMFUL, HARMLESS
from tests.serving.test_shadow import pairs, stopped

pytestmark = pytest.mark.anyio

ORDINARY, UNLUCKY = 1.0, 13.0


def release_that(home: Installation, what: str) -> str:
    """A release that answers `x / 100`, and does `what` where `x` is UNLUCKY."""
    lines = (
        "import os, time",
        "import numpy as np",
        "def apply(raw, inputs, params):",
        f"    if inputs['x'][0] == {UNLUCKY}:",
        f"        {what}",
        "    score = raw + inputs['x'] / 100",
        "    return {'score': score, 'decision': score > 0.5}",
    )
    return home.rebuilt({"postprocess.py": "\n".join(lines).encode()})


async def statuses(home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch, what: str) -> dict[str, str]:
    """What became of pairs one by one, the second of which is unlucky: status and error."""
    monkeypatch.setattr(shadow, "_AGAIN_S", 0.0)
    monkeypatch.setattr(shadow, "_PATIENCE_S", 1.0)
    home.publish("shadow", challenger=release_that(home, what), breaker=Breaker(timeout_ms=50))
    async with start() as running:
        for name, x in (("before", ORDINARY), ("unlucky", UNLUCKY), ("after", ORDINARY)):
            await running.infer(name, x=x)
            await running.shadows_done()
    assert home.events(Override) == []
    return {name: f"{one.status} {one.error}".strip() for name, one in pairs(home).items()}


async def two_on_the_way(running: Running) -> int:
    """The shadow process, stopped, and with so much before it that what comes now waits in the worker."""
    pid = await stopped(running)
    for name in ("second", "third"):
        await running.infer(name, x=HARMLESS)
        await asyncio.sleep(0.01)  # turns of the loop: it is sent alone
    return pid


def end_children_left_behind() -> None:
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "serving.shadow_process" in command and command[-1] == str(os.getpid()):
            process.kill()


async def test_one_that_ends_its_process_by_a_signal_without_a_name_is_to_blame(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await statuses(home, start, monkeypatch, "os.kill(os.getpid(), 40)") == {
        "before": "ok",
        "unlucky": "error ended the process that scored it (signal 40)",
        "after": "ok",
    }


async def test_one_that_leaves_a_child_behind_that_holds_the_socket_has_ended_all_the_same(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        found = await statuses(home, start, monkeypatch, "time.sleep(60) if os.fork() == 0 else os._exit(3)")
    finally:
        end_children_left_behind()
    assert found == {
        "before": "ok",
        "unlucky": "error ended the process that scored it (exit code 3)",
        "after": "ok",
    }


async def test_one_that_goes_on_twice_gives_no_request_the_score_of_another(home: Installation, start: Start) -> None:
    home.publish("shadow", challenger=release_that(home, "os.fork()"))
    async with start() as running:
        pid = await stopped(running)
        for name, x in (("unlucky", UNLUCKY), ("next", ORDINARY)):
            await running.infer(name, x=x)
            await asyncio.sleep(0)  # a turn of the loop: it is sent alone
        os.kill(pid, signal.SIGCONT)
        await running.shadows_done()
        await running.infer("after", x=ORDINARY)
        await running.shadows_done()
    end_children_left_behind()  # a fork may never get past the locks of the libraries that it has copied
    found = {name: one.score for name, one in pairs(home).items()}
    for name in ("next", "after"):  # whichever is on its way when the second voice is heard is lost with the process
        assert found.pop(name) in ([], [0.01])
    assert found == {"first": [HARMLESS / 100], "unlucky": [0.13]}


async def test_one_that_writes_into_its_inputs_scores_as_it_would_for_a_client(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await statuses(home, start, monkeypatch, "inputs['x'] *= 2")
    assert found == {"before": "ok", "unlucky": "ok", "after": "ok"}
    assert {name: one.score for name, one in pairs(home).items()} == {
        "before": [0.01], "unlucky": [0.26], "after": [0.01],
    }  # fmt: skip


async def test_where_one_request_fails_both_arms_score_its_company_one_by_one(home: Installation, start: Start) -> None:
    champion = home.release(0.3, semver="1.2.0", sleep_s=0.01)
    challenger = home.release(0.7, semver="1.3.0", sleep_s=0.01, error_share=0.5)
    home.publish("shadow", champion=champion, challenger=challenger)
    async with start() as running:
        pid = await two_on_the_way(running)
        await running.infer("fails", x=HARMFUL)
        for k in range(3):
            await running.infer(f"q{k}", x=HARMLESS)
        os.kill(pid, signal.SIGCONT)
        await running.shadows_done()
    found = pairs(home)
    assert found["fails"].status == "error"
    company = [found[f"q{k}"] for k in range(3)]
    assert [one.status for one in company] == ["ok"] * 3
    for one in company:
        assert one.beside_us is not None
        assert 0.4 < one.latency_us / one.beside_us < 2.5, "not one of them alone, and the other one three times"


async def test_a_request_of_many_rows_is_sent_alone(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[list[int]] = []

    def message(exchanges: Sequence[Exchange], number: int, alone: bool) -> bytes:
        sent.append([exchange.bound.rows for exchange in exchanges])
        return original(exchanges, number, alone)

    original: Any = sending._message
    monkeypatch.setattr(sending, "_message", message)
    home.publish("shadow")
    async with start() as running:
        pid = await two_on_the_way(running)
        for k, rows in enumerate((1, 32, 33, 33, 1, 1)):
            await running.infer(f"q{k}", x=[1.0] * rows)
        os.kill(pid, signal.SIGCONT)
        await running.shadows_done()
    assert sent[3:] == [[1, 32], [33], [33], [1, 1]]
    found = pairs(home)
    assert [len(found[f"q{k}"].score) for k in range(6)] == [1, 32, 33, 33, 1, 1]


async def test_the_processor_time_of_second_arms_is_counted(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> float:
        text = running.gateway.metrics.render().decode()
        return float(re.findall(r"^slipway_cpu_seconds_total (\S+)", text, re.MULTILINE)[0])

    monkeypatch.setattr(shadow, "_TICK_S", 0.01)
    home.publish("shadow")
    async with start() as running:
        pid = await stopped(running)
        used = psutil.Process(pid).cpu_times()
        own_s, others_s = time.process_time(), used.user + used.system
        assert others_s > 0.1
        assert counted() > own_s + 0.9 * others_s
        os.kill(pid, signal.SIGCONT)
        monkeypatch.setattr(shadow, "_REST_S", 0.0)
        await running.until(lambda: not psutil.pid_exists(pid))
        assert counted() > own_s + 0.9 * others_s


async def test_of_a_company_that_is_scored_by_one_call_one_pair_carries_the_times(
    home: Installation, start: Start
) -> None:
    home.publish("shadow")
    async with start() as running:
        pid = await two_on_the_way(running)
        for k in range(4):
            await running.infer(f"q{k}", x=HARMLESS)
        os.kill(pid, signal.SIGCONT)
        await running.shadows_done()
    company = [one.beside_us for name, one in pairs(home).items() if name.startswith("q")]
    assert company[0] not in (None, NOT_COMPARED)
    assert company[1:] == [NOT_COMPARED] * 3
