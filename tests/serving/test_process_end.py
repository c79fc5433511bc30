"""How processes of the gateway end and are replaced, under `bentoml serve`, with requests running through."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

from pipelines.contracts.events import Assignment, Response
from tests.serving.conftest import Installation
from tests.serving.processes import GatewayProcess, bentoml_serve
from tests.threads import Threads
from tests.waiting import wait_until

BODY = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}


def test_sigterm_answers_what_is_in_flight_and_closes_the_log(home: Installation) -> None:
    slow = home.release(0.4, semver="3.0.0", sleep_s=1.0)
    home.publish("split", champion=slow, share_ppm=1)  # in threads, side by side
    with (
        bentoml_serve(home.home) as gateway,
        httpx.Client(base_url=gateway.url, timeout=30.0) as client,  # made before: none is answered while one is made
        ThreadPoolExecutor(4) as clients,
    ):
        asked = [clients.submit(client.post, "/v2/models/m/infer", json=BODY) for _ in range(4)]
        wait_until(lambda: len(home.events(Assignment)) == 4, "all requests are in flight")
        assert not any(one.done() for one in asked)
        began = time.monotonic()
        with httpx.Client(base_url=gateway.url) as kept:
            assert kept.get("/v2/health/ready").status_code == 200
            gateway.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)  # the worker knows by now, and has a connection without a request
            last = kept.get("/v2/health/live")
            assert (last.status_code, last.headers["connection"]) == (200, "close")
        answers = [one.result() for one in asked]
        assert [answer.status_code for answer in answers] == [200] * 4
        assert {answer.json()["parameters"]["release"] for answer in answers} == {slow}
        assert gateway.process.wait(30) == 0
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
    responses = home.events(Response)
    assert sum(one.served for one in responses) == 4
    assert sum(one.shadow for one in responses) == 4, "pairs that were promised are scored before the end"
    (epoch,) = (home.home / "bus" / "gw0").iterdir()
    assert (epoch / "closed").exists()


def test_a_worker_whose_supervisor_is_killed_answers_what_is_in_flight_and_ends(home: Installation) -> None:
    slow = home.release(0.4, semver="3.0.0", sleep_s=0.5)
    home.publish(champion=slow)
    with bentoml_serve(home.home) as gateway, ThreadPoolExecutor(1) as clients:
        (worker,) = gateway.workers()
        asked = clients.submit(httpx.post, f"{gateway.url}/v2/models/m/infer", json=BODY, timeout=30.0)
        wait_until(lambda: len(home.events(Assignment)) == 1, "a request is being answered")
        gateway.process.kill()
        assert asked.result().status_code == 200
        worker.wait(30)
    assert [one.served for one in home.events(Response)] == [True]
    (epoch,) = (home.home / "bus" / "gw0").iterdir()
    assert (epoch / "closed").exists()


class Clients(Threads):
    """Threads that open a new connection for every request, and count how each ended."""

    def __init__(self, url: str, threads: int) -> None:
        super().__init__(self._run, threads)
        self._url = url
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()

    def _run(self, _: int) -> None:
        while not self.stopping:
            try:
                answer = httpx.post(f"{self._url}/v2/models/m/infer", json=BODY, timeout=60.0)
                end = str(answer.status_code)
            except httpx.TransportError as error:
                end = type(error).__name__
            with self._lock:
                self.ends[end] += 1


def test_a_worker_is_replaced_without_a_refused_connection(home: Installation) -> None:
    """With one worker there is nobody else: what is asked meanwhile waits at the supervisor's socket."""
    home.publish()
    with bentoml_serve(home.home) as gateway:
        ends = {}
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            (worker,) = gateway.workers()
            with Clients(gateway.url, threads=4) as clients:
                ends[signal_number] = clients.ends
                wait_until(lambda clients=clients: clients.ends["200"] > 20, "requests run")
                worker.send_signal(signal_number)
                wait_until(lambda worker=worker: live(gateway) not in (set(), {worker.pid}), "another takes its place")
                answered = clients.ends["200"]
                wait_until(lambda n=answered, clients=clients: clients.ends["200"] > n + 20, "requests run")
            print(f"{signal_number.name}: {dict(ends[signal_number])}")
        gateway.stop()
    assert set(ends[signal.SIGTERM]) == {"200"}, "a worker that is asked to end finishes what it has taken"
    killed = ends[signal.SIGKILL]
    assert killed["ConnectError"] == 0, "the listening socket is the supervisor's: it stays"
    assert killed.total() - killed["200"] <= 4, "only requests that were in the killed worker are lost"
    epochs = sorted((home.home / "bus" / "gw0").iterdir(), key=lambda path: path.name)
    assert [(path / "closed").exists() for path in epochs] == [True, False, True]


def live(gateway: GatewayProcess) -> set[int]:
    return {worker.pid for worker in gateway.workers()}
