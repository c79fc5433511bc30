"""Hostile clients against a gateway process: each gets its 4xx or is cut off, and the next client is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.conftest import Installation
from tests.serving.processes import GatewayProcess, bentoml_serve
from tests.waiting import wait_until

LIMITS = {
    "SLIPWAY_GATEWAY_MAX_HEAD_BYTES": "8192",
    "SLIPWAY_GATEWAY_HEAD_TIMEOUT_S": "0.5",
    "SLIPWAY_GATEWAY_BODY_TIMEOUT_S": "0.5",
    "SLIPWAY_GATEWAY_WRITE_TIMEOUT_S": "0.5",
    "SLIPWAY_GATEWAY_MAX_CONNECTIONS": "60",
    "SLIPWAY_GATEWAY_MAX_JSON_DEPTH": "32",
    "SLIPWAY_GATEWAY_MAX_ROWS": "200000",
}
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}).encode()
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n"
REQUEST = HEAD % len(BODY) + b"\r\n" + BODY


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    home = Installation(tmp_path_factory.mktemp("protection"))
    home.publish()
    with bentoml_serve(home.home, **LIMITS) as process:
        yield process


@pytest.fixture(autouse=True)
def serves_afterwards(gateway: GatewayProcess) -> Iterator[None]:
    """Whatever a test did, the same worker goes on answering, and nothing failed in it."""
    workers = [one.pid for one in gateway.workers()]
    yield
    with closing(Client(gateway)) as client:
        assert client.send(REQUEST).status() == 200
    assert [one.pid for one in gateway.workers()] == workers
    output = gateway.output.read_text()
    assert "Traceback" not in output, output
    assert "unexpected error" not in output, output


class Client:
    """A raw connection."""

    def __init__(self, gateway: GatewayProcess, timeout_s: float = 10.0) -> None:
        address = httpx.URL(gateway.url)
        self.socket = socket.create_connection((address.host, address.port or 80), timeout=timeout_s)

    def send(self, data: bytes) -> Client:
        self.socket.sendall(data)
        return self

    def everything(self) -> bytes:
        """All that comes until the gateway closes the connection; a reset ends it too."""
        got = b""
        try:
            while chunk := self.socket.recv(65536):
                got += chunk
        except ConnectionResetError:
            pass
        return got

    def status(self) -> int:
        """The status of the first answer."""
        return int(self.socket.recv(65536).split(b" ", 2)[1])

    def close(self) -> None:
        self.socket.close()


def statuses(answers: bytes) -> list[int]:
    return [int(part.split(b" ", 1)[0]) for part in answers.split(b"HTTP/1.1 ")[1:]]


def test_a_head_that_does_not_come_is_408_in_time(gateway: GatewayProcess) -> None:
    began = time.monotonic()
    with closing(Client(gateway)) as silent, closing(Client(gateway)) as started:
        started.send(b"POST /v2/models/m/infer HTTP/1.1\r\nhost:")
        assert statuses(started.everything()) == [408]
        assert statuses(silent.everything()) == [408]
    assert time.monotonic() - began < 5.0


def test_a_slow_loris_gets_no_further_and_holds_nobody_up(gateway: GatewayProcess) -> None:
    lorises = [Client(gateway).send(b"POST /v2/models/m/infer HTTP/1.1\r\n") for _ in range(30)]
    began = time.monotonic()
    alive = len(lorises)
    slowest = 0.0
    while alive and time.monotonic() - began < 10.0:
        for one in list(lorises):
            try:
                one.send(b"x-more: 1\r\n")
            except OSError:
                lorises.remove(one)
                one.close()
        alive = len(lorises)
        asked = time.monotonic()
        with closing(Client(gateway)) as client:
            assert client.send(REQUEST).status() == 200
        slowest = max(slowest, time.monotonic() - asked)
        # The rhythm of the attack: a header now and then.
        time.sleep(0.1)
    assert alive == 0
    assert slowest < 1.0


def test_a_body_that_does_not_come_is_408_in_time(gateway: GatewayProcess) -> None:
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: g\r\n"
    known, chunked = head + b"content-length: 1000\r\n\r\n", head + b"transfer-encoding: chunked\r\n\r\n"
    began = time.monotonic()
    clients = [Client(gateway).send(sent) for sent in (known, known + b"{", chunked, chunked + b"1\r\n{\r\n")]
    for client in clients:
        with closing(client):
            assert statuses(client.everything()) == [408]
    assert time.monotonic() - began < 5.0


def test_a_client_that_does_not_read_its_answers_is_cut_off(gateway: GatewayProcess) -> None:
    rows = 20_000
    many = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [rows], "data": [1.5] * rows}]}).encode()
    asked = HEAD % len(many) + b"\r\n" + many
    (worker,) = gateway.workers()
    with closing(Client(gateway)) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(0.5)
        began = time.monotonic()
        cut = False
        while not cut and time.monotonic() - began < 20.0:
            try:
                client.send(asked)
            except TimeoutError:
                continue
            except OSError:
                cut = True
        assert cut
    assert worker.memory_info().rss < 1 << 30


@pytest.mark.parametrize(
    "head",
    [
        HEAD % len(BODY) + b"x-long: " + b"a" * 9000 + b"\r\n\r\n" + BODY,
        HEAD % len(BODY) + b"".join(b"x-%d: 1\r\n" % n for n in range(1000)) + b"\r\n" + BODY,
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: g\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"a" * 5_000_000,
    ],
    ids=["one header", "many headers", "path", "without end"],
)
def test_a_long_head_is_431(gateway: GatewayProcess, head: bytes) -> None:
    with closing(Client(gateway)) as client:
        client.send(head)
        assert statuses(client.everything()) == [431]


def test_trailers_without_end_are_cut_off(gateway: GatewayProcess) -> None:
    with closing(Client(gateway)) as client:
        client.send(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: g\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        client.send(b"x-trailer: " + b"a" * 500_000)
        assert statuses(client.everything()) in ([431], [408], [])


def test_ten_megabytes_are_413_and_the_connection_stays_usable(gateway: GatewayProcess) -> None:
    body = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [' + b"1," * 5_000_000 + b"1]}]}"
    with httpx.Client(base_url=gateway.url, timeout=10.0) as client:
        for _ in range(3):
            assert client.post("/v2/models/m/infer", content=body).status_code == 413
            assert client.post("/v2/models/m/infer", content=iter([body[: 1 << 20]] * 10)).status_code == 413
        assert client.post("/v2/models/m/infer", content=BODY).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/m/infer", "/v1/models/m/labels", "/v1/models/m/kpis"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"labels":' + b'{"a":' * 3_000_000,
        b'{"a":"\\"[",' + b'"b":' + b"[[" * 20 + b"]]" * 20 + b"}",
    ],
    ids=["lists", "objects", "behind a quote"],
)
def test_deep_nesting_is_400(gateway: GatewayProcess, path: str, body: bytes) -> None:
    with httpx.Client(base_url=gateway.url, timeout=10.0) as client:
        answer = client.post(path, content=body[: 7 << 20])
        assert answer.status_code == 400
        assert "32 levels" in answer.json()["error"]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]} | changes


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[NaN]}]}', 400),
        (b'{"inputs":[{"name":"x","datatype":"FP64","shape":[1],"data":[Infinity]}]}', 400),
        (b"\x00" * 1000, 400),
        ({"inputs": [tensor(shape=[2])]}, 400),
        ({"inputs": [tensor(shape=[10**18])]}, 400),
        ({"inputs": [tensor(shape=[-1])]}, 400),
        ({"inputs": [tensor(datatype="FP128")]}, 400),
        ({"inputs": [tensor(datatype="BYTES", data=["1"])]}, 400),
        ({"inputs": [tensor(name="y")]}, 400),
        ({"inputs": [tensor(name="x" * 100_000)]}, 400),
        ({"inputs": [tensor(), tensor()]}, 400),
        ({"inputs": [tensor(shape=[300_000], data=[0] * 300_000)]}, 413),
        ({"inputs": [tensor()], "id": "x" * 300}, 400),
        ({"inputs": [tensor()], "outputs": [{"name": "nothing"}]}, 400),
        ({"inputs": [tensor()] * 20_000}, 400),
    ],
)
def test_wrong_requests_are_4xx(gateway: GatewayProcess, body: Any, status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx.post(f"{gateway.url}/v2/models/m/infer", content=content, timeout=10.0)
    assert answer.status_code == status
    assert len(answer.content) < 2_000, "an error does not send the request back"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02\x03" * 100,
        b"HELO gateway\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v2/models/m/infer HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: g\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\nhost: g\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_is_400_and_the_connection_is_closed(gateway: GatewayProcess, garbage: bytes) -> None:
    with closing(Client(gateway)) as client:
        client.send(garbage)
        assert statuses(client.everything()) in ([400], [404], [408])


def test_pipelined_requests_are_answered_in_order_until_the_garbage(gateway: GatewayProcess) -> None:
    with closing(Client(gateway)) as client:
        client.send(REQUEST * 3 + b"\x00garbage\r\n\r\n" + REQUEST)
        got = statuses(client.everything())
    assert got == [200, 200, 200, 400]


def test_many_pipelined_requests_are_all_answered(gateway: GatewayProcess) -> None:
    with closing(Client(gateway)) as client:
        client.send(REQUEST * 49 + REQUEST.replace(b"host: gateway", b"connection: close"))
        assert statuses(client.everything()) == [200] * 50


def test_a_client_that_closed_its_sending_half_still_gets_its_answer(gateway: GatewayProcess) -> None:
    with closing(Client(gateway)) as client:
        client.send(REQUEST).socket.shutdown(socket.SHUT_WR)
        assert statuses(client.everything()) == [200]
    for part in (b"", REQUEST[:40], REQUEST[:-5]):
        with closing(Client(gateway)) as client:
            client.send(part).socket.shutdown(socket.SHUT_WR)
            assert 200 not in statuses(client.everything())


def test_past_its_connections_the_gateway_answers_429_and_serves_the_others(gateway: GatewayProcess) -> None:
    kept = httpx.Client(base_url=gateway.url, timeout=5.0)
    with kept:
        assert kept.post("/v2/models/m/infer", content=BODY).status_code == 200
        idle = [Client(gateway) for _ in range(60)]
        try:
            # Which of them the gateway has counted first is its own affair; some are over the limit.
            time.sleep(0.2)  # for longer than it takes to count them
            assert kept.post("/v2/models/m/infer", content=BODY).status_code == 200
            with closing(Client(gateway)) as late:
                answer = late.everything()
            assert statuses(answer) == [429]
            assert b"retry-after: 1" in answer
        finally:
            for one in idle:
                one.close()


def test_memory_and_files_stay_where_they_were(gateway: GatewayProcess) -> None:
    (worker,) = gateway.workers()
    before = worker.memory_info().rss
    for _ in range(300):
        with closing(Client(gateway)) as client:
            client.send(REQUEST[:60])
    wait_until(lambda: len(open_connections(worker)) <= 2, "what is gone is closed on the gateway's side, too", 10)
    assert worker.memory_info().rss < before + (64 << 20)


def open_connections(worker: psutil.Process) -> list[Any]:
    return [one for one in worker.net_connections("tcp") if one.status in ("ESTABLISHED", "CLOSE_WAIT")]
