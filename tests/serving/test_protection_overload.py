"""More requests at once than a gateway can serve: some are served in time, the rest are told to come again."""

from __future__ import annotations

import time
from contextlib import closing

import httpx

from tests.serving.conftest import Installation
from tests.serving.processes import bentoml_serve
from tests.serving.test_protection import REQUEST, Client

TOGETHER = 60
WORK_S = 0.05
QUEUE_S = 0.2


def test_what_would_wait_too_long_is_429_at_once_while_health_and_rollback_are_answered(home: Installation) -> None:
    slow = home.release(0.4, semver="3.0.0", sleep_s=WORK_S)
    home.publish(champion=slow, fallback=home.champion)
    with bentoml_serve(home.home, SLIPWAY_GATEWAY_MAX_QUEUE_MS=str(QUEUE_S * 1000)) as gateway:
        clients = [Client(gateway, timeout_s=30) for _ in range(TOGETHER)]
        for client in clients:
            client.send(b"GET /v2/health/live HTTP/1.1\r\nhost: g\r\n\r\n")
            told = b""
            while not told.endswith(b"}"):
                told += client.socket.recv(65536)
        began = time.monotonic()
        for client in clients:
            client.send(REQUEST)
        health = httpx.get(f"{gateway.url}/v2/health/live", timeout=30)
        back = httpx.post(f"{gateway.url}/v1/models/m/rollback", headers={"authorization": "Bearer sesame"}, timeout=30)
        answers = []
        for client in clients:
            with closing(client):
                answers.append(client.socket.recv(65536))
        seconds = time.monotonic() - began
        metrics = httpx.get(f"{gateway.url}/metrics").text
    accepted = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200")]
    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429")]
    assert len(accepted) + len(refused) == TOGETHER
    assert (health.status_code, back.status_code) == (200, 200)
    print(f"{len(accepted)} accepted, {len(refused)} refused in {seconds:.2f} s")
    assert accepted
    assert refused
    assert all(b"retry-after: 1\r\n" in answer for answer in refused)
    assert f'slipway_refused_total{{status="429"}} {len(refused)}.0' in metrics
    # All of them one after the other would have taken three seconds.
    assert len(accepted) * WORK_S < seconds < TOGETHER * WORK_S
