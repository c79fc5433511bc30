"""Second arms: scored by a process of the lowest priority, whatever happens to it, and logged by the worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.events import Assignment, FeatureRead, Override, Response
from pipelines.contracts.routes import Breaker
from pipelines.settings import PROJECT
from serving import shadow
from serving.inputs import Bound
from serving.online_features.plan import ReadPlan, Reads, ViewRead
from serving.scoring import Scorer
from serving.shadow_messages import Company, Incoming, packed, scorer_of, sent_request
from tests.serving.conftest import Installation, Running, Start
from tests.serving.test_arms import HARMFUL, HARMLESS
from tests.waiting import wait_until

pytestmark = pytest.mark.anyio


def pairs(home: Installation) -> dict[str, Response]:
    """The second arms' responses, by request."""
    found = [one for one in home.events(Response) if one.shadow]
    assert len(found) == len({one.request_id for one in found}), "each once"
    return {one.request_id: one for one in found}


async def stopped(running: Running) -> int:
    """The shadow process, up and stopped, so that what is sent to it waits."""
    await running.infer("first", x=HARMLESS)
    await running.shadows_done()
    pid = running.gateway.shadow.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    return pid


async def test_a_process_of_the_lowest_priority_scores_both_arms_once_the_answer_is_logged(
    home: Installation, start: Start
) -> None:
    home.publish("shadow")
    async with start() as running:
        answer = await running.infer("q")
        await running.shadows_done()
        pid = running.gateway.shadow.pid
        assert pid not in (None, os.getpid())
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    assert not psutil.pid_exists(pid)
    assert answer.json()["parameters"]["arm"] == "champion"
    assigned, served, second = home.events()
    assert isinstance(assigned, Assignment)
    assert assigned.paired
    assert [(one.arm, one.served, one.shadow, one.score) for one in (served, second)] == [
        ("champion", True, False, [0.3]), ("challenger", False, True, [0.7]),
    ]  # fmt: skip
    assert served.beside_us is None
    assert second.latency_us > 0
    assert second.beside_us is not None
    assert second.beside_us > 0


async def test_while_arms_are_drawn_the_other_one_is_scored_too_and_its_times_are_compared_with_none(
    home: Installation, start: Start
) -> None:
    home.publish("split", share_ppm=500_000)
    async with start() as running:
        arms = {f"q{k}": (await running.infer(f"q{k}")).json()["parameters"]["arm"] for k in range(12)}
        await running.shadows_done()
    assert set(arms.values()) == {"champion", "challenger"}
    assert {name: one.arm for name, one in pairs(home).items()} == {
        name: "champion" if arm == "challenger" else "challenger" for name, arm in arms.items()
    }
    assert {one.beside_us for one in pairs(home).values()} == {None}


async def test_a_second_arm_that_hangs_is_given_up_and_holds_up_no_client(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_PATIENCE_S", 1.0)
    hanging = home.release(0.7, semver="1.2.0", sleep_s=600.0, sleep_share=0.5)
    home.publish("shadow", challenger=hanging, breaker=Breaker(timeout_ms=50))
    async with start() as running:
        await running.infer("before", x=HARMLESS)
        await running.shadows_done()
        await running.infer("hangs", x=HARMFUL)
        await asyncio.sleep(0)  # a turn of the loop: it is sent alone
        await running.infer("behind", x=HARMLESS)
        await running.shadows_done()
        statuses = {name: (one.status, one.error) for name, one in pairs(home).items()}
    assert statuses == {"before": ("ok", ""), "hangs": ("error", "gave no answer"), "behind": ("ok", "")}


async def test_a_second_arm_that_comes_after_its_routes_timeout_has_failed(home: Installation, start: Start) -> None:
    home.publish("shadow", challenger=home.release(0.7, semver="1.2.0", sleep_s=0.1), breaker=Breaker(timeout_ms=50))
    async with start() as running:
        await running.infer("q")
        await running.shadows_done()
    (second,) = pairs(home).values()
    assert (second.status, second.error, second.latency_us) == ("error", "timeout after 50 ms", 50_000)


async def test_a_challenger_that_ends_its_process_is_to_blame_and_switched_off_and_the_worker_goes_on(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_AGAIN_S", 0.0)
    crashing = home.release(0.9, semver="3.0.0", crash_share=0.5)
    home.publish("shadow", challenger=crashing, breaker=Breaker(failures=2))
    async with start() as running:
        for k in range(2):
            for name, x in (("q", HARMFUL), ("fine", HARMLESS)):  # one by one: a company has one fate
                assert (await running.infer(f"{name}{k}", x=x)).status_code == 200
                await running.shadows_done()
        await running.until(lambda: bool(home.events(Override)))
        assert (await running.infer("after")).json()["parameters"]["arm"] == "champion"
        assert running.gateway.table.plans["m"].effective.challenger is None
    failed = {name: one.error for name, one in pairs(home).items() if one.status == "error"}
    assert set(failed) == {"q0", "q1"}
    assert all("ended the process that scored it (SIG" in error for error in failed.values())


async def test_who_kills_the_process_from_outside_loses_no_pair_and_blames_nobody(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_AGAIN_S", 0.0)
    home.publish("shadow")
    async with start() as running:
        pid = await stopped(running)
        for k in range(20):
            await running.infer(f"q{k}")
        os.kill(pid, signal.SIGKILL)
        await running.shadows_done()
        assert running.gateway.shadow.pid != pid
    assert set(pairs(home)) == {"first", *(f"q{k}" for k in range(20))}
    assert {one.status for one in pairs(home).values()} == {"ok"}


async def test_a_process_that_cannot_be_started_costs_pairs_and_no_answer(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadow, "_AGAIN_S", 0.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    home.publish("shadow")
    async with start() as running:
        assert (await running.infer("q")).json()["parameters"]["logged"] is True
        await running.shadows_done()
    assert pairs(home) == {}
    assert "the second arms of 1 requests are lost" in caplog.text


async def test_the_end_waits_for_what_was_promised_but_not_for_ever(home: Installation, start: Start) -> None:
    home.publish("shadow")
    async with start() as running:
        pid = await stopped(running)
        await running.infer("q")
        began = time.monotonic()
        await running.gateway.shadow.drain(0.1)
        assert time.monotonic() - began < 30.0
        assert not psutil.pid_exists(pid)
    assert set(pairs(home)) == {"first"}


async def test_a_queue_that_moves_slowly_promises_no_more_than_it_can_keep(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_LONGEST_WAIT_S", 0.05)
    home.publish("shadow", challenger=home.release(0.7, semver="1.2.0", sleep_s=0.1))
    async with start() as running:
        for k in range(2):  # the first one waits for the releases to be loaded
            await running.infer(f"first{k}")
            await running.shadows_done()
        for k in range(10):
            await running.infer(f"q{k}")
        await running.shadows_done()
    promised = sum(one.paired for one in home.events(Assignment))
    assert 3 <= promised < 7
    assert len(pairs(home)) == promised


async def test_without_work_the_process_ends_and_another_comes_with_the_next_pair(
    home: Installation, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "_REST_S", 0.0)
    monkeypatch.setattr(shadow, "_TICK_S", 0.01)
    home.publish("shadow")
    async with start() as running:
        for name in ("a", "b"):
            await running.infer(name)
            await running.shadows_done()
            await running.until(lambda: running.gateway.shadow.pid is None)
    assert set(pairs(home)) == {"a", "b"}


def test_the_process_ends_with_its_worker() -> None:
    worker = (
        "import asyncio, os, time\n"
        "from contextlib import nullcontext\n"
        "from serving.shadow_link import Link\n"
        "from serving.shadow_messages import Begin\n"
        "async def main():\n"
        "    hold = lambda message: (print(link.pid, flush=True), time.sleep(600))\n"
        "    link = Link(Begin('', ''), hold, nullcontext())\n"
        "    await link.open()\n"
        "    await link.lost(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", worker], cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(pid, signal.SIGSTOP)  # it sees no end of its socket
        process.kill()
        wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie", "it has ended")


def test_the_clock_of_pairs_stands_while_others_have_the_processor() -> None:
    measuring = (
        "import os, subprocess, sys, time\n"
        "from serving.shadow_scoring import own_time\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "time.sleep(0.2)\n"
        "clock = own_time()\n"
        "wall, own, used = time.perf_counter_ns(), clock(), time.thread_time_ns()\n"
        "while time.thread_time_ns() - used < 3e6: pass\n"
        "slept = clock()\n"
        "print(time.perf_counter_ns() - wall, slept - own)\n"
        "time.sleep(0.05)\n"
        "print(clock() - slept)\n"
        "other.kill()\n"
    )
    text = subprocess.run([sys.executable, "-c", measuring], cwd=PROJECT, capture_output=True, text=True, check=True)
    wall, own, slept = map(int, text.stdout.split())
    assert 3e6 <= own < wall / 2
    assert slept >= 50e6, "asleep it goes on: a release that waits for something is slow"


def test_the_clock_of_pairs_never_goes_back_however_often_it_is_interrupted() -> None:
    measuring = (
        "import os, subprocess, sys, time\n"
        "from serving.shadow_scoring import own_time\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        # It comes and goes: each return is an interruption.
        "bursts = 'import time\\nwhile True:\\n time.sleep(2e-4)\\n for _ in range(9000): pass'\n"
        "other = subprocess.Popen([sys.executable, '-c', bursts])\n"
        "os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\n"
        "time.sleep(0.1)\n"  # the other one starts
        "clock, back, began = own_time(), 0, time.monotonic()\n"
        "last = clock()\n"
        "while time.monotonic() < began + 0.7:\n"
        "    now = clock()\n"
        "    back, last = back + (now < last), now\n"
        "print(back)\n"
        "other.kill()\n"
    )
    text = subprocess.run([sys.executable, "-c", measuring], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert int(text.stdout) == 0


columns = st.one_of(
    st.lists(st.floats(), min_size=2, max_size=2).map(lambda values: np.array(values, dtype=np.float64)),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1), min_size=2, max_size=2).map(np.int64).map(np.array),
    st.lists(st.integers(0, (1 << 64) - 1), min_size=2, max_size=2).map(lambda values: np.array(values, np.uint64)),
    st.lists(st.booleans(), min_size=2, max_size=2).map(np.array),
    st.lists(
        st.none() | st.text(max_size=5) | st.lists(st.integers(0, 9)) | st.dictionaries(st.text(), st.booleans()),
        min_size=2, max_size=2,
    ).map(lambda values: np.array([*values, None], dtype=object)[:2]),
)  # fmt: skip


@given(st.integers(0, 3), st.dictionaries(st.text(max_size=4), columns), columns, st.integers(1, 99))
def test_a_request_is_scored_there_from_the_same_columns_as_here(
    plain: int, others: dict[str, np.ndarray], read: np.ndarray, cut: int
) -> None:
    names = tuple(f"plain {k}" for k in range(plain))
    block = np.random.default_rng(plain).normal(size=(plain, 2))
    bound = Bound(2, dict(zip(names, block, strict=True)) | others, {"x": [1]}, names, block, list(others))
    plan = ReadPlan({})
    plan.by_release = {"d": [0], "e": []}
    view = ViewRead(FeatureRead("v", ["f"], [1], [[1]]), {"f": read}, "v: missing", unavailable=True)
    sent = sent_request(Scorer(bound, Reads(plan, [view], 7)))
    company = Company(1, "challenger", {"champion": "d"}, plan.by_release, True, False, 5, [sent])
    incoming, data = Incoming(), packed(company) * 2
    came = [one for at in range(0, len(data), cut) for one in incoming.of_worker(data[at : at + cut])]
    assert len(came) == 2
    there = scorer_of(came[1].requests[0], came[1].places)
    assert (there.bound.rows, there.bound.names, there.bound.uncertain) == (2, names, list(others))
    assert list(there.bound.columns) == list(bound.columns)
    for name, column in bound.columns.items():
        assert there.bound.columns[name].dtype == column.dtype
        np.testing.assert_array_equal(there.bound.columns[name], column)
    (of_view,) = there.reads.of("d")
    assert (of_view.logged.view, of_view.degraded, of_view.unavailable) == ("v", "v: missing", True)
    np.testing.assert_array_equal(of_view.columns["f"], read)
    assert (there.reads.of("e"), there.reads.took_us) == ([], 7)
