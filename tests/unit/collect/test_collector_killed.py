"""A real collector process, killed with signal 9 at moments drawn from a printed seed, while events are written; some
of them are none.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.adapters.collector_store import CollectorStore
from pipelines.settings import PROJECT
from pipelines.wiring import rollouts
from pipelines.wiring.collect import Collector, collect_all, verify_log
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker

KILLS = 3


class Traffic(threading.Thread):
    """Two workers that write requests all the time; `acknowledged` are the ids of events that are in a file."""

    def __init__(self, installation: Installation, seed: int) -> None:
        super().__init__()
        self.installation, self.rng = installation, random.Random(seed)
        self.workers = [Worker(installation.bus, worker=number) for number in range(2)]
        self.stopping = threading.Event()

    def run(self) -> None:
        route = self.installation.route
        for number in range(1_000_000):
            if self.stopping.is_set():
                return
            worker = self.workers[number % 2]
            worker.now_us = max(worker.now_us, time.time_ns() // 1000)
            # Either arm, so that nothing is withdrawn meanwhile.
            failing = frozenset({self.rng.choice(("champion", "challenger"))})
            fails = failing if self.rng.random() < 0.02 else frozenset[str]()
            worker.request(route, f"q{number}", fails=fails, label=float(self.rng.random() < 0.3))
            if number % 20 == 19:
                worker.frame(b"no event %d" % number)
            if number % 400 == 399:
                worker.rotate()
            time.sleep(0.002)  # some 300 requests a second

    @property
    def acknowledged(self) -> list[tuple[str, int, int, int]]:
        return [("gw0", w.worker, 1, n) for w in self.workers for n in range(w.n)]


@pytest.fixture
def traffic(tmp_path: Path) -> Iterator[Traffic]:
    made = Traffic(Installation(tmp_path), seed=5)
    made.start()
    yield made
    made.stopping.set()
    made.join()


def collector(installation: Installation) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.cli.main", "collector", "run", "--poll-ms", "10", "--commit-ms", "30"]
    environment = os.environ | {"SLIPWAY_HOME": str(installation.settings.root)}
    with (installation.settings.root / "collector.out").open("ab") as output:
        return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=output)


def at_work(installation: Installation) -> subprocess.Popen[bytes]:
    """A collector that has completed a batch of its own."""
    store = CollectorStore(installation.db)
    before, process = store.last_batch(), collector(installation)
    deadline = time.monotonic() + 120
    while store.last_batch() < before + 2:  # the first may be the one that was begun before the kill
        assert process.poll() is None, (installation.settings.root / "collector.out").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the collector needs the processor too
    return process


@pytest.mark.slow
def test_every_acknowledged_event_is_stored_exactly_once_whenever_the_collector_is_killed(traffic: Traffic) -> None:
    seed = int(os.environ.get("SLIPWAY_TEST_SEED", time.time_ns() % 1_000_000))
    print(f"SLIPWAY_TEST_SEED={seed}")
    rng = random.Random(seed)
    installation = traffic.installation
    store = CollectorStore(installation.db)
    in_flight = []
    for _ in range(KILLS):
        process = at_work(installation)
        time.sleep(rng.uniform(0, 0.25))  # the moment of the kill
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        in_flight.append(len(traffic.acknowledged) - sum(at.next_n for at in store.positions().values()))
    assert all(count > 0 for count in in_flight), "every kill met events on their way"

    process = at_work(installation)
    traffic.stopping.set()
    traffic.join()
    process.terminate()
    assert process.wait(60) == 0, "SIGTERM finishes the batch in work and ends in order"
    collect_all(installation.settings)

    stored, aside = installation.stored(), [event_id for event_id, _ in installation.quarantined()]
    assert aside
    assert sorted([*stored, *aside]) == sorted(traffic.acknowledged)
    assert all(report.whole for report in verify_log(installation.settings))
    assert CollectorStore(installation.db).counters().seq["m"] == len(stored)
    folded = Collector(installation.settings)
    (live,) = folded._running(store.last_batch() + 1).values()
    assert live.row(0).document == installation.evidence(), "evidence is what the lake folds to"
    assert not any(rollouts.audit(installation.settings).values())
