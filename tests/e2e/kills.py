"""A running gateway, shipper and collector, clients that keep their own books, and ways to kill each of them.

The truth is the client's file: an id is written and fsynced there as its answer arrives. A kill that met no request in
flight raises, and so does one of the gateway that cut off no request.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import msgspec
import psutil

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.routes import Route
from pipelines.settings import Settings
from pipelines.stack import down, processes, up
from pipelines.wiring.collect import verify_log
from tests.builders import constant_release
from tests.free_ports import free_port
from tests.kafka_broker import Broker
from tests.threads import Threads
from tests.waiting import wait_until, wait_until_ended

MODEL = "steady"
CONNECTIONS = 8
SERVICE_S = 0.004
"""How long an answer is in the making: long against the client's own work, so that a kill finds requests inside."""
DYING = Path(__file__).with_name("dying")
OTHERS_BUSINESS = frozenset({"gateway worker", "gateway worker in a write", "shadow process"})
"""Victims that somebody replaces: the supervisor its worker, the worker its shadow process."""
WRITTEN_BETWEEN = 40_000
"""A death in a write of the log comes within so many bytes: some dozens of requests."""


class Client(Threads):
    """Sends requests over several connections; writes down each acknowledged id, fsynced, as its answer arrives."""

    def __init__(self, settings: Settings, file: Path) -> None:
        super().__init__(self._send, CONNECTIONS)
        self.url = f"{settings.gateway_url}/v2/models/{MODEL}/infer"
        self.file = file
        self.in_flight: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.lost: set[str] = set()
        self._lock = threading.Lock()
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        os.close(self._descriptor)

    @property
    def sent(self) -> int:
        """Requests whose outcome is known."""
        return sum(self.outcomes.values())

    def acknowledged(self) -> list[str]:
        """What the file says."""
        return self.file.read_text().split()

    def _send(self, number: int) -> None:
        tensor = {"name": "x", "shape": [1], "datatype": "FP64", "data": [0.5]}
        count = 0
        while not self.stopping:
            with httpx.Client(timeout=5) as client:
                try:
                    while not self.stopping:
                        count += 1
                        self._ask(client, f"{number}-{count}", tensor)
                except httpx.TransportError:
                    time.sleep(0.02)  # nobody listens for a moment after a kill

    def _ask(self, client: httpx.Client, request: str, tensor: dict[str, Any]) -> None:
        with self._lock:
            self.in_flight.add(request)
        outcome = "interrupted"
        try:
            answer = client.post(self.url, json={"id": request, "inputs": [tensor]})
            if answer.status_code == 200:
                if not answer.json()["parameters"]["logged"]:
                    outcome = "200, not logged"
                    return
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


class Site:
    """An installation without Airflow: gateway and collector; with a broker, the shipper between them."""

    def __init__(self, home: Path, broker: Broker | None) -> None:
        kafka = broker.servers if broker else ""
        self.settings = Settings(home=home, gateway_port=free_port(), route_poll_ms=50, gateway_workers=1, kafka=kafka)
        self.broker = broker
        self.parts = ["gateway", *(["shipper"] if broker else []), "collector"]
        self.die_at = home / "die_at"
        self.kills: Counter[str] = Counter()
        self.cut_off = 0

    def victims(self) -> list[str]:
        """Whom `kill` can kill."""
        found = ["gateway worker", "gateway worker in a write", "gateway supervisor", "gateway, all of it"]
        found += ["shadow process", "collector"]
        return [*found, "shipper", "broker"] if self.broker else found

    def up(self) -> None:
        up(self.settings, self.parts)

    def kill(self, client: Client, name: str, rng: random.Random) -> None:
        """SIGKILL at a moment or byte drawn from `rng`; what is gone is started again as an operator would: by `up`."""
        wait_for_answers(client, 20)
        gone_before = set(client.lost)
        if name == "gateway worker in a write":
            victim = self.worker()
            (self.die_at.with_suffix(".new")).write_text(str(rng.randrange(WRITTEN_BETWEEN)))
            self.die_at.with_suffix(".new").rename(self.die_at)
            wait_until_ended([victim], 60)  # in a write of its log
        else:
            time.sleep(rng.uniform(0.0, 0.5))  # the moment of the kill
            in_flight = set(client.in_flight)
            self._strike(name)
            assert in_flight, f"the kill of the {name} met no request in flight"
        if name == "broker":
            assert self.broker is not None
            time.sleep(rng.uniform(0.0, 1.0))  # an outage of some length
            self.broker.start()
        elif name not in OTHERS_BUSINESS:
            self.up()
        if name.startswith("gateway") and name != "gateway supervisor":
            wait_until(lambda: client.lost - gone_before, f"a request is cut off by the kill of the {name}")
        self.kills[name] += 1
        self.cut_off += len(client.lost - gone_before)

    def _strike(self, name: str) -> None:
        if name == "broker":
            assert self.broker is not None
            self.broker.kill()
            return
        victims = {
            "gateway worker": lambda: [self.worker()],
            "gateway supervisor": lambda: [self.leader("gateway")],
            "gateway, all of it": lambda: [self.leader("gateway"), self.worker()],
            "shadow process": lambda: [self.shadow_process()],
            "shipper": lambda: [self.leader("shipper")],
            "collector": lambda: [self.leader("collector")],
        }[name]()
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        wait_until_ended(victims)

    def leader(self, part: str) -> psutil.Process:
        """The process that `slipway up` has started for a part."""
        record = processes.read_record(part, self.settings.run_dir)
        assert record is not None
        process = processes.leader(record)
        assert process is not None, f"{part} does not run"
        return process

    def worker(self) -> psutil.Process:
        """The gateway's worker: the process that answers."""
        return self._child("_bentoml_impl.worker.service")

    def shadow_process(self) -> psutil.Process:
        """The worker's process for second arms."""
        return self._child("serving.shadow_process")

    def _child(self, module: str) -> psutil.Process:
        found: list[psutil.Process] = []

        def is_there() -> bool:
            children = self.leader("gateway").children(recursive=True)
            found[:] = [one for one in children if _runs(one, module)]
            return bool(found)

        wait_until(is_there, f"the gateway has {module}")
        return found[0]

    def settled(self) -> bool:
        """Whether no pair waits, and every frame on the gateway's own disk has been collected, whatever the bus."""
        if httpx.get(f"{self.settings.gateway_url}/v1/routes").json()["shadow_waiting"]:
            return False
        on_disk = self.settings.model_copy(update={"kafka": ""})
        return all(report.waiting == 0 for report in verify_log(on_disk))

    def found(self) -> tuple[Counter[str], Counter[str]]:
        """How often each request is among the assignments in the lake, and among the answers that were given."""
        lake, mine = DeltaLake(self.settings.lake), f"model = '{MODEL}'"
        assigned = lake.read("inference/assignment", ["request_id"], where=mine)
        served = lake.read("inference/response", ["request_id"], where=f"{mine} AND served")
        return Counter(assigned["request_id"].to_pylist()), Counter(served["request_id"].to_pylist())

    def pairs(self) -> tuple[list[str], Counter[str]]:
        """Pairs that the living worker has promised and whose second arm is not in the lake; second arms by request."""
        lake, mine = DeltaLake(self.settings.lake), f"model = '{MODEL}'"
        seconds = lake.read("inference/response", ["request_id"], where=f"{mine} AND shadow")["request_id"].to_pylist()
        promised = lake.read("inference/assignment", ["request_id", "epoch"], where=f"{mine} AND paired").to_pylist()
        newest, scored = max(row["epoch"] for row in promised), set(seconds)
        missing = [row["request_id"] for row in promised if row["epoch"] == newest and row["request_id"] not in scored]
        return missing, Counter(seconds)


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """The books: what clients sent and were told, and what the lake holds. `found`: acknowledged and there once.

    `pairs_missing`: promised, and not scored, by a worker that lives. One that was killed takes its last ones with it.
    """

    sent: int
    acknowledged: int
    found: int
    stored_twice: int
    streams: int
    not_whole: list[str]
    repeats: int
    torn_tails: int
    second_arms: int
    pairs_missing: int


def count(site: Site, client: Client) -> Count:
    """Wait until everything is collected, and compare."""
    wait_until(site.settled, "everything is collected", 180)
    acknowledged = client.acknowledged()
    assert len(acknowledged) == len(set(acknowledged))
    assigned, served = site.found()
    missing, seconds = site.pairs()
    reports = verify_log(site.settings)
    on_disk = verify_log(site.settings.model_copy(update={"kafka": ""}))
    return Count(
        sent=client.sent,
        acknowledged=len(acknowledged),
        found=sum(assigned[name] == 1 and served[name] == 1 for name in acknowledged),
        stored_twice=sum(n > 1 for counter in (assigned, served, seconds) for n in counter.values()),
        streams=len(reports),
        not_whole=[str(report) for report in [*reports, *on_disk] if not report.whole],
        repeats=sum(report.repeats for report in reports),
        torn_tails=sum(report.torn > 0 for report in on_disk),
        second_arms=len(seconds),
        pairs_missing=len(missing),
    )


@contextmanager
def running(home: Path, broker: Broker | None) -> Iterator[Site]:
    """A ready site whose gateway may be told to die in a write."""
    site = Site(home, broker)
    release = constant_release(site.settings.releases, MODEL, 0.3, sleep_s=SERVICE_S)
    challenger = constant_release(site.settings.releases, MODEL, 0.7)
    control_db(site.settings).set_route(
        Route(
            model=MODEL, version=0, mode="shadow", champion=release, challenger=challenger, shadow=True, rollout_id="r"
        )
    )
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "SLIPWAY_DIE_AT")}
    inherited = before["PYTHONPATH"]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(DYING), *([inherited] if inherited else [])])
    os.environ["SLIPWAY_DIE_AT"] = str(site.die_at)
    try:
        site.up()
        ready = f"{site.settings.gateway_url}/v2/models/{MODEL}/ready"
        wait_until(lambda: httpx.get(ready).status_code == 200, f"{MODEL} is served", 90)
        yield site
    finally:
        down(site.settings, site.parts)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wait_for_answers(client: Client, number: int) -> None:
    """Answers come: the kill before is over."""
    begin = client.outcomes["200"]
    wait_until(lambda: client.outcomes["200"] >= begin + number, "the gateway answers again", 90)


def _runs(process: psutil.Process, module: str) -> bool:
    try:
        return module in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
