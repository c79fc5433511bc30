"""More requests at once than a gateway can serve: some are served in time, the rest are told to come again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import grpc
import httpx
import pytest

from serving.oip.grpc_messages import SERVICE, message_class
from tests.free_ports import free_port
from tests.serving.conftest import Installation
from tests.serving.processes import GatewayProcess, bentoml_serve
from tests.serving.test_protection import BODY, HEAD, REQUEST, Client
from tests.waiting import wait_until

TOGETHER = 60
WORK_S = 0.05
QUEUE_S = 0.2
GRPC_PORT = free_port()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Serves two slow models, `m` and `n`, on both doors; a request of either may wait `QUEUE_S` for its turn."""
    home = Installation(tmp_path_factory.mktemp("overload"))
    home.publish(champion=home.release(0.4, semver="3.0.0", sleep_s=WORK_S), fallback=home.champion)
    home.publish(model="n", champion=home.release(0.4, model="n", sleep_s=WORK_S))
    ports = {"SLIPWAY_GATEWAY_GRPC_PORT": str(GRPC_PORT)}
    with bentoml_serve(home.home, SLIPWAY_GATEWAY_MAX_QUEUE_MS=str(QUEUE_S * 1000), **ports) as process:
        yield process


def connected(gateway: GatewayProcess) -> list[Client]:
    """Clients whose connections the worker has taken."""
    clients = [Client(gateway, timeout_s=30) for _ in range(TOGETHER)]
    for client in clients:
        client.send(b"GET /v2/health/live HTTP/1.1\r\nhost: g\r\n\r\n")
        told = b""
        while not told.endswith(b"}"):
            told += client.socket.recv(65536)
    return clients


def answers_of(clients: list[Client], began: float) -> tuple[list[float], list[bytes], float]:
    """Seconds since `began` at which accepted requests were answered, the refusals, and when the last answer came."""
    accepted, refused = [], []
    for client in clients:
        with closing(client):
            answer = client.socket.recv(65536)
        if answer.startswith(b"HTTP/1.1 200"):
            accepted.append(time.monotonic() - began)
        else:
            assert answer.startswith(b"HTTP/1.1 429"), answer
            assert b"retry-after: 1\r\n" in answer
            refused.append(answer)
    return accepted, refused, time.monotonic() - began


def shed(gateway: GatewayProcess) -> int:
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    return int(sum(float(one.split()[-1]) for one in lines if one.startswith('slipway_refused_total{status="429"}')))


def test_bodies_completed_together_wait_for_each_other_and_are_429_past_the_limit(gateway: GatewayProcess) -> None:
    before = shed(gateway)
    clients = connected(gateway)
    head = (HEAD % len(BODY)).replace(b"models/m", b"models/n") + b"\r\n"
    for client in clients:
        client.send(head + BODY[:10])
    # Every request has been begun, and waits for the rest of its body.
    assert httpx.get(f"{gateway.url}/v2/health/live", timeout=30).status_code == 200
    began = time.monotonic()
    for client in clients:
        client.send(BODY[10:])
    accepted, refused, seconds = answers_of(clients, began)
    print(f"{len(accepted)} accepted, {len(refused)} refused in {seconds:.2f} s")
    assert accepted
    assert shed(gateway) - before == len(refused) > 0
    # The wait in the kernel, while the turn before went on, comes on top of the wait for a turn.
    assert max(accepted) < TOGETHER * WORK_S / 2


def test_who_connects_while_the_worker_is_busy_is_taken_soon(gateway: GatewayProcess) -> None:
    """By itself the event loop takes one connection a turn, and here every turn takes as long as a request."""
    began = time.monotonic()
    clients = [Client(gateway, timeout_s=30).send(REQUEST.replace(b"models/m", b"models/n")) for _ in range(TOGETHER)]
    accepted, refused, seconds = answers_of(clients, began)
    print(f"{len(accepted)} accepted, {len(refused)} refused in {seconds:.2f} s")
    assert accepted
    assert refused
    assert max(accepted) < TOGETHER * WORK_S / 2


def test_calls_that_would_wait_too_long_are_exhausted_and_told_when_to_come_again(gateway: GatewayProcess) -> None:
    before = shed(gateway)
    request, answer = message_class("ModelInferRequest"), message_class("ModelInferResponse")
    tensor = {"name": "x", "datatype": "FP64", "shape": [1], "contents": {"fp64_contents": [1.0]}}
    ended: list[tuple[float, grpc.Future]] = []
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer", request.SerializeToString, answer.FromString)
        asked = request(model_name="n", inputs=[tensor])
        infer(asked)
        began = time.monotonic()
        for _ in range(TOGETHER):
            infer.future(asked).add_done_callback(lambda call: ended.append((time.monotonic() - began, call)))
        wait_until(lambda: len(ended) == TOGETHER, "every call has ended", 30)
    accepted = [seconds for seconds, call in ended if call.code() == grpc.StatusCode.OK]
    refused = [call for _, call in ended if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
    print(f"{len(accepted)} accepted, {len(refused)} refused in {max(seconds for seconds, _ in ended):.2f} s")
    assert len(accepted) + len(refused) == TOGETHER
    assert all(("grpc-retry-pushback-ms", "1000") in call.trailing_metadata() for call in refused)
    assert accepted
    assert shed(gateway) - before == len(refused) > 0
    assert max(seconds for seconds, _ in ended) < TOGETHER * WORK_S / 2


def test_what_would_wait_too_long_is_429_at_once_while_health_and_rollback_are_answered(
    gateway: GatewayProcess,
) -> None:
    before = shed(gateway)
    clients = connected(gateway)
    began = time.monotonic()
    for client in clients:
        client.send(REQUEST)
    health = httpx.get(f"{gateway.url}/v2/health/live", timeout=30)
    back = httpx.post(f"{gateway.url}/v1/models/m/rollback", headers={"authorization": "Bearer sesame"}, timeout=30)
    accepted, refused, seconds = answers_of(clients, began)
    print(f"{len(accepted)} accepted, {len(refused)} refused in {seconds:.2f} s")
    assert (health.status_code, back.status_code) == (200, 200)
    assert accepted
    assert shed(gateway) - before == len(refused) > 0
    # All of them one after the other would have taken three seconds.
    assert seconds < TOGETHER * WORK_S
