"""Every acknowledged request survives `kill -9` of the gateway and of the collector, in the lake exactly once.

The truth is the client's own file: an id is written and fsynced there as its answer arrives. Kills come at moments
drawn from a printed seed while requests are in flight; a kill that met none counts as a failed run.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.routes import Route
from pipelines.settings import Settings
from pipelines.stack import down, processes, up
from pipelines.stack.environment import serving_python
from pipelines.wiring.collect import verify_log
from tests.builders import constant_release
from tests.free_ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

MODEL = "steady"
PARTS = ["gateway", "collector"]
SEED = int(os.environ.get("SLIPWAY_KILL_SEED") or random.SystemRandom().randrange(2**31))
CONNECTIONS = 8
SERVICE_S = 0.004
"""How long an answer is in the making: long against the client's own work, so that a kill finds requests inside."""


class Client:
    """Sends requests over several connections; writes down each acknowledged id, fsynced, as its answer arrives."""

    def __init__(self, settings: Settings, file: Path) -> None:
        self.url = f"{settings.gateway_url}/v2/models/{MODEL}/infer"
        self.file = file
        self.in_flight: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.lost: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(CONNECTIONS)]

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        os.close(self._descriptor)

    def acknowledged(self) -> list[str]:
        """What the file says."""
        return self.file.read_text().split()

    def _send(self, number: int) -> None:
        tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]}
        count = 0
        while not self._stop.is_set():
            with httpx.Client(timeout=5) as client:
                try:
                    while not self._stop.is_set():
                        count += 1
                        self._ask(client, f"{number}-{count}", tensor)
                except httpx.TransportError:
                    time.sleep(0.02)  # the gateway is being restarted

    def _ask(self, client: httpx.Client, request: str, tensor: dict[str, object]) -> None:
        with self._lock:
            self.in_flight.add(request)
        outcome = "interrupted"
        try:
            answer = client.post(self.url, json={"id": request, "inputs": [tensor]})
            if answer.status_code == 200:
                os.write(self._descriptor, f"{request}\n".encode())
                os.fsync(self._descriptor)
            outcome = str(answer.status_code)
        except httpx.ConnectError:
            outcome = "not connected"
            raise
        finally:
            with self._lock:
                self.in_flight.discard(request)
                self.outcomes[outcome] += 1
                if outcome == "interrupted":
                    self.lost.add(request)


def supervisor(settings: Settings, part: str) -> psutil.Process:
    """The process that `slipway up` has started for a part."""
    record = processes.read_record(part, settings.run_dir)
    assert record is not None
    process = processes.leader(record)
    assert process is not None, f"{part} does not run"
    return process


def worker(settings: Settings) -> psutil.Process:
    """The gateway's worker: the process that answers."""
    children = supervisor(settings, "gateway").children(recursive=True)
    return next(one for one in children if "_bentoml_impl.worker.service" in " ".join(one.cmdline()))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    if not serving_python().exists():
        assert os.environ.get("CI") != "true", f"{serving_python()} is missing: run `make setup`"
        pytest.skip("no serving environment: run `make setup`")
    made = Settings(home=tmp_path_factory.mktemp("kills"), gateway_port=free_port(), route_poll_ms=50)
    release = constant_release(made.releases, MODEL, 0.3, sleep_s=SERVICE_S)
    control_db(made).set_route(Route(model=MODEL, version=0, mode="single", champion=release))
    try:
        up(made, PARTS)
        ready = f"{made.gateway_url}/v2/models/{MODEL}/ready"
        wait_until(lambda: httpx.get(ready).status_code == 200, f"{MODEL} is served", 90)
        yield made
    finally:
        down(made, PARTS)


def test_what_was_acknowledged_is_in_the_lake_once_whoever_is_killed(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    print(f"\nseed {SEED} (SLIPWAY_KILL_SEED)")
    victims: dict[str, Callable[[], list[psutil.Process]]] = {
        "gateway worker": lambda: [worker(settings)],
        "gateway supervisor": lambda: [supervisor(settings, "gateway")],
        "gateway, all of it": lambda: [supervisor(settings, "gateway"), worker(settings)],
        "collector": lambda: [supervisor(settings, "collector")],
    }
    turns = [*victims, "gateway worker", "collector"]
    rng.shuffle(turns)

    with Client(settings, tmp_path / "acknowledged") as client:
        for name in turns:
            wait_for_answers(client, 20)
            time.sleep(rng.uniform(0.0, 0.5))  # the moment of the kill
            kill(settings, client, name, victims[name]())
        wait_for_answers(client, 50)

    acknowledged = client.acknowledged()
    assert len(acknowledged) == len(set(acknowledged))
    wait_until(lambda: waiting(settings) == 0, "everything is collected", 90)
    assigned, served = found_in_lake(settings)
    found = sum(assigned[name] == 1 and served[name] == 1 for name in acknowledged)
    sent = sum(client.outcomes.values())
    print(f"sent {sent} ({dict(client.outcomes)}), acknowledged {len(acknowledged)}, found exactly once {found}")
    assert found == len(acknowledged)
    assert max(assigned.values()) == max(served.values()) == 1, "nothing is stored twice, acknowledged or not"
    reports = verify_log(settings)
    assert all(report.whole for report in reports), reports
    assert len(reports) == 1 + sum(name.startswith("gateway") for name in turns), "one epoch a worker's life"


def kill(settings: Settings, client: Client, name: str, victims: list[psutil.Process]) -> None:
    """SIGKILL, and start what is gone again as an operator would: by `up`. A killed worker's supervisor does it."""
    gone_before = set(client.lost)
    in_flight = set(client.in_flight)
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    assert in_flight, f"the kill of the {name} met no request in flight"
    psutil.wait_procs(victims, timeout=30)
    if name != "gateway worker":
        up(settings, PARTS)
    if name.startswith("gateway"):
        wait_until(lambda: bool(client.lost - gone_before), f"a request is cut off by the kill of the {name}", 60)
    print(f"killed the {name}: {len(in_flight)} in flight, {len(client.lost - gone_before)} cut off")


def wait_for_answers(client: Client, count: int) -> None:
    """Answers come: the kill before is over."""
    begin = client.outcomes["200"]
    wait_until(lambda: client.outcomes["200"] >= begin + count, "the gateway answers again", 90)


def waiting(settings: Settings) -> int:
    return sum(report.waiting for report in verify_log(settings))


def found_in_lake(settings: Settings) -> tuple[Counter[str], Counter[str]]:
    """How often each request is among the assignments, and among the answers that were given."""
    lake, mine = DeltaLake(settings.lake), f"model = '{MODEL}'"
    assigned = lake.read("inference/assignment", ["request_id"], where=mine)
    served = lake.read("inference/response", ["request_id"], where=f"{mine} AND served")
    return Counter(assigned["request_id"].to_pylist()), Counter(served["request_id"].to_pylist())
