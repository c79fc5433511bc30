"""Binary tensor data at the application's boundary: whatever is wrong with a request is a 4xx, and is not logged."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import zlib
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.contracts.events import Assignment, Response
from serving.app import GatewayApp
from serving.gateway import Gateway
from serving.limits import Limits
from tests.serving.conftest import Installation, Start

pytestmark = pytest.mark.anyio

Sent = tuple[dict[str, str], bytes]


def binary(x: np.ndarray, origins: list[str], **more: Any) -> Sent:
    """Headers and body of a request with binary inputs `x` and `origin`."""
    texts = b"".join(len(one.encode()).to_bytes(4, "little") + one.encode() for one in origins)
    parts = {"x": ("FP64", x.tobytes()), "origin": ("BYTES", texts)}
    inputs = [
        {"name": name, "datatype": datatype, "shape": [len(x)], "parameters": {"binary_data_size": len(part)}}
        for name, (datatype, part) in parts.items()
    ]
    head = json.dumps({"inputs": inputs, **more}).encode()
    return {"inference-header-content-length": str(len(head))}, head + b"".join(part for _, part in parts.values())


PLAIN = {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}
GOOD = binary(np.array([1.0, 2.0]), ["JFK", "EWR"], parameters={"binary_data_output": True})


async def test_a_binary_request_is_answered_and_logged_and_by_a_version_too(home: Installation, start: Start) -> None:
    home.publish()
    headers, body = GOOD
    async with start() as running:
        for path, score in (("/v2/models/m/infer", 0.3), ("/v2/models/m/versions/1.1.0/infer", 0.7)):
            answer = await running.client.post(path, headers=headers, content=body)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
            length = int(answer.headers["inference-header-content-length"])
            outputs = {one["name"]: one for one in json.loads(answer.content[:length])["outputs"]}
            assert {name: one["parameters"] for name, one in outputs.items()} == {
                "score": {"binary_data_size": 16}, "decision": {"binary_data_size": 2},
            }  # fmt: skip
            decisions = bytes([score >= 0.5] * 2)
            assert answer.content[length:] == decisions + np.array([score, score]).tobytes()
    (assignment,) = home.events(Assignment)
    assert assignment.inputs == {"x": [1.0, 2.0], "origin": ["JFK", "EWR"]}
    assert home.events(Response)[0].score == [0.3, 0.3]


async def test_a_version_answers_from_the_moment_its_release_is_there_until_it_is_gone(
    home: Installation, start: Start
) -> None:
    home.publish()
    releases = home.home / "releases"
    long_ago = (1_600_000_000, 1_600_000_000)

    async def status(version: str) -> int:
        return (await running.client.post(f"/v2/models/m/versions/{version}/infer", json=PLAIN)).status_code

    async with start() as running:
        os.utime(releases, long_ago)  # the folder has not been touched for long: what it holds is remembered
        assert [await status(version) for version in ("1.1.0", "1.1.0", "2.0.0", "2.0.0")] == [200, 200, 404, 404]
        added = home.release(0.5, semver="2.0.0")
        assert [await status(version) for version in ("2.0.0", added)] == [200, 200]
        newer = home.release(0.6, semver="2.0.0", manifest_fields={"created_us": 7})
        answer = await running.client.post("/v2/models/m/versions/2.0.0/infer", json=PLAIN)
        assert answer.json()["parameters"]["release"] == newer
        assert list((await running.client.get("/v2/models/m")).json()["versions"]) == ["1.0.0", "1.1.0", "2.0.0"]
        home.release(0.6, semver="1.10.0")
        assert (await running.client.get("/v2/models/m")).json()["versions"] == ["1.0.0", "1.1.0", "1.10.0", "2.0.0"]
        shutil.rmtree(releases / newer)
        answer = await running.client.post("/v2/models/m/versions/2.0.0/infer", json=PLAIN)
        assert answer.json()["parameters"]["release"] == added


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-encoding": "br"}, b"{}", 415),
        ({"content-encoding": "gzip"}, b"{}", 400),
        ({"content-encoding": "gzip"}, gzip.compress(b" " * 100_000_000), 413),
        ({"content-encoding": "gzip"}, gzip.compress(b'{"inputs":' + b"[" * 100_000), 400),
        ({"content-encoding": "deflate"}, zlib.compress(b'{"inputs":[]}')[:-1], 400),
        ({"inference-header-content-length": "-1"}, GOOD[1], 400),
        ({"inference-header-content-length": "9" * 400}, GOOD[1], 400),
        ({"inference-header-content-length": "0"}, GOOD[1], 400),
        ({}, GOOD[1], 400),
    ],
)
async def test_a_wrong_envelope_is_refused(
    home: Installation, start: Start, headers: dict[str, str], body: bytes, status: int
) -> None:
    home.publish()
    async with start() as running:
        answer = await running.client.post("/v2/models/m/infer", headers=headers, content=body)
        assert answer.status_code == status
        assert answer.json()["error"]
    assert home.events() == []


def damaged(seed: int) -> Sent:
    """A good request with some of it changed: bytes, length, compression, or the length that the header tells."""
    rng = random.Random(seed)
    headers, body = dict(GOOD[0]), bytearray(GOOD[1])
    length = int(headers["inference-header-content-length"])
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(5):
            case 0:
                body[rng.randrange(len(body))] = rng.randrange(256)
            case 1:
                del body[rng.randrange(len(body)) :]
                body += b"{"
            case 2:
                body += rng.randbytes(rng.randrange(1, 9))
            case 3:
                headers["inference-header-content-length"] = str(length + rng.randrange(-40, 41))
            case _:
                # Digits of sizes and shapes lie among the JSON.
                at = rng.choice([index for index, byte in enumerate(body) if chr(byte).isdigit()] or [0])
                body[at] = rng.choice(b"0123456789-.e")
    if rng.random() < 0.2:
        headers["content-encoding"] = rng.choice(["gzip", "deflate", "br", "identity"])
        if rng.random() < 0.8:
            return headers, gzip.compress(bytes(body)) if rng.random() < 0.5 else zlib.compress(bytes(body))
    return headers, bytes(body)


# A number past the model's float32 is infinite to it. Outside of tests that is a warning, and no error.
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_no_damage_to_a_binary_request_is_an_error_of_the_gateway(tmp_path: Path) -> None:
    home = Installation(tmp_path / "home")
    home.publish()

    async def send_all(seeds: list[int]) -> dict[int, int]:
        gateway = Gateway(home.settings(), Limits())
        await gateway.start()
        try:
            transport = httpx.ASGITransport(app=GatewayApp(gateway))
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                statuses = {}
                for seed in seeds:
                    headers, body = damaged(seed)
                    answer = await client.post("/v2/models/m/infer", headers=headers, content=body)
                    statuses[seed] = answer.status_code
                return statuses
        finally:
            await gateway.stop()

    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, 2**32), min_size=100, max_size=100))
    def try_them(seeds: list[int]) -> None:
        refused = {seed: status for seed, status in anyio.run(send_all, seeds).items() if status != 200}
        assert {seed: status for seed, status in refused.items() if status not in (400, 413, 415)} == {}

    try_them()
