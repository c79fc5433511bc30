"""The gateway as a process under BentoML: health, graceful end, kill -9 under load."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from pipelines.contracts import segments
from pipelines.contracts.events import Assignment, Label, Response
from tests.serving.conftest import Installation
from tests.serving.processes import bentoml_serve
from tests.waiting import wait_until


def body(request_id: str | None = None) -> dict[str, object]:
    made: dict[str, object] = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
    return made if request_id is None else made | {"id": request_id}


def test_bentoml_supervises_and_answers_its_health_while_the_gateway_answers_the_rest(home: Installation) -> None:
    home.publish("shadow", stage="shadow")
    count = len(os.sched_getaffinity(0))
    with bentoml_serve(home.home, SLIPWAY_GATEWAY_WORKERS="0") as gateway, httpx.Client(base_url=gateway.url) as client:
        bus = home.home / "bus" / "gw0"
        wait_until(lambda: len(list(bus.iterdir())) == count, "a worker for each core has started")
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2"):
            assert client.get(path).status_code == 200, path
        for k in range(20):
            # A connection each, so that both workers get some.
            answer = httpx.post(f"{gateway.url}/v2/models/m/infer", json=body(f"q{k}"))
            assert answer.json()["parameters"]["logged"] is True
        assert client.post("/v1/models/m/labels", json={"labels": [{"id": "q0", "value": 1}]}).status_code == 202
        assert len(home.events(Label)) == 1
        assert client.get("/v2/models/n").json()["error"].startswith("model")
        # A worker tells its counts every second.
        wait_until(
            lambda: 'slipway_request_seconds_count{model="m"} 20.0' in client.get("/metrics").text,
            "both workers' requests are counted",
        )
        assert len(gateway.workers()) == count
        assert min(rolled_back(home, gateway.url) for _ in range(3)) < 1.0, "the machine may be busy, but not always"
        gateway.stop()
    assert len(home.events(Assignment)) == 20
    # Promised pairs were scored before the end, and each worker closed its epoch.
    assert sum(event.shadow for event in home.events(Response)) == 20
    epochs = list(bus.iterdir())
    assert {path.name.split("-")[0] for path in epochs} == {str(k) for k in range(count)}
    assert all((path / "closed").exists() for path in epochs)


def rolled_back(home: Installation, url: str) -> float:
    """Seconds from asking for a rollback until every worker obeys it; the rollout is let in again afterwards."""

    def overrides() -> set[str | None]:
        # A connection each, so that both workers are asked.
        asked = [httpx.get(f"{url}/v1/routes").json()["routes"][0]["effective"]["override"] for _ in range(6)]
        return set(asked)

    began = time.monotonic()
    done = httpx.post(f"{url}/v1/models/m/rollback", headers={"authorization": "Bearer sesame"})
    assert done.status_code == 200
    override = done.json()["override"]
    wait_until(lambda: overrides() == {override}, "every worker obeys")
    seconds = time.monotonic() - began
    home.publish("shadow", stage="shadow", clears_overrides=[override])
    wait_until(lambda: overrides() == {None}, "every worker follows the route that names the override")
    return seconds


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_new_route_reaches_every_worker_within_a_second(database: str, request: pytest.FixtureRequest) -> None:
    home: Installation = request.getfixturevalue("home" if database == "sqlite" else "home_on_postgres")
    home.publish()
    environment = {"SLIPWAY_GATEWAY_WORKERS": "2", "SLIPWAY_CONTROL_URL": home.control_url}
    with bentoml_serve(home.home, **environment) as gateway, gateway.connected(2) as workers:
        seconds = []
        for release in (home.challenger, home.champion, home.challenger):
            home.publish(champion=release)
            began = time.monotonic()
            wait_until(
                lambda: {route["version"] for route in routes(workers)} == {home.version}, "every worker follows"
            )
            seconds.append(time.monotonic() - began)
            assert {route["route"]["champion"] for route in routes(workers)} == {release}
    assert min(seconds) < 1.0, "the least of three: the machine may have been busy with something else"


def routes(workers: list[httpx.Client]) -> list[dict[str, Any]]:
    return [worker.get("/v1/routes").json()["routes"][0] for worker in workers]


class Load:
    """Client threads; what was acknowledged is fsynced in a file, one line an answer, before the next request."""

    def __init__(self, url: str, acknowledged: Path, threads: int) -> None:
        self._url = url
        self._file = acknowledged.open("a")
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.inflight = 0
        self.failed = 0
        self.answered = 0
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        client = httpx.Client(base_url=self._url, timeout=10.0)
        k = 0
        while not self._stop.is_set():
            k += 1
            request_id = f"{number}-{k}"
            kind = "label" if k % 10 == 0 else "infer"
            taken = logged = False
            with self._lock:
                self.inflight += 1
            try:
                if kind == "infer":
                    answer = client.post("/v2/models/m/infer", json=body(request_id))
                else:
                    answer = client.post("/v1/models/m/labels", json={"labels": [{"id": request_id, "value": 1}]})
                taken = answer.status_code in (200, 202)
                # A disk that is slow for a second is no fault, and the answer says so.
                logged = kind == "label" or (taken and answer.json()["parameters"]["logged"])
            except httpx.TransportError:
                client.close()
                client = httpx.Client(base_url=self._url, timeout=10.0)
                time.sleep(0.02)  # nobody listens for a moment after a kill
            with self._lock:
                self.inflight -= 1
                if taken:
                    self.answered += 1
                    if logged:
                        self._file.write(f"{kind} {request_id}\n")
                        self._file.flush()
                        os.fsync(self._file.fileno())
                else:
                    self.failed += 1
        client.close()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._file.close()


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("seed", [20260])
def test_a_killed_worker_loses_nothing_that_was_acknowledged(home: Installation, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    # Slow enough that at any moment requests are on their way.
    champion, challenger = (home.release(score, semver="2.0.0", sleep_s=0.01) for score in (0.3, 0.7))
    home.publish("split", champion=champion, challenger=challenger, share_ppm=500_000)
    acknowledged = tmp_path / "acknowledged"
    with bentoml_serve(home.home) as gateway:
        load = Load(gateway.url, acknowledged, threads=6)
        try:
            for _ in range(2):
                time.sleep(rng.uniform(0.3, 0.9))  # the moment of the kill
                (worker,) = gateway.workers()
                failed_before = load.failed
                wait_until(lambda: load.inflight > 0, "a request is in flight")
                worker.kill()
                # Its number stays until the supervisor has looked after it, which it does now and then.
                wait_until(lambda worker=worker: not alive(worker), "the worker is gone")
                gateway.wait_ready()
                wait_until(lambda before=failed_before: load.failed > before, "a request was lost on its way")
                answered_before = load.answered
                wait_until(lambda before=answered_before: load.answered > before + 6, "requests are answered again")
        finally:
            load.end()
        gateway.stop()
    lines = [line.split() for line in acknowledged.read_text().splitlines()]
    infers = {request_id for kind, request_id in lines if kind == "infer"}
    labels = {request_id for kind, request_id in lines if kind == "label"}
    assignments = [event.request_id for event in home.events(Assignment)]
    served = [event.request_id for event in home.events(Response) if event.served]
    labelled = [event.request_id for event in home.events(Label)]
    print(f"seed {seed}: acknowledged {len(infers)} + {len(labels)} labels, failed {load.failed}, found {len(served)}")
    assert len(infers) > 50
    assert len(assignments) == len(set(assignments))
    assert infers <= set(assignments)
    assert infers <= set(served)
    assert len(served) == len(set(served))
    assert labels <= set(labelled)
    assert len(labelled) == len(set(labelled))
    # Three epochs, gapless each, and no bytes behind the last whole frame but a torn tail.
    epochs = sorted((home.home / "bus" / "gw0").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    assert len(epochs) == 3
    for epoch in epochs:
        data = b"".join(path.read_bytes() for path in sorted(epoch.glob("*.seg")))
        numbers = [one.n for one in segments.read_frames(data)]
        assert numbers == list(range(len(numbers)))
    assert [(path / "closed").exists() for path in epochs] == [False, False, True]
