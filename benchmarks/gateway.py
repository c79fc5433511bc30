"""Requests per second and latency of the gateway beside bare ASGI + ONNX Runtime, in one run.

    serving/.venv/bin/python -m benchmarks.gateway [--seconds 5] [--connections 16]

One row a request; the model is a constant one, so that what is measured is what the gateway adds: parsing, routing, the
durable log and post-processing. Server on core 0, load generator (a bare socket client on uvloop) on core 1.
Writes benchmarks/results/gateway.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import uvloop

from pipelines.contracts.routes import Route
from tests.builders import constant_release, publish_route

PROJECT = Path(__file__).resolve().parent.parent
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.5]}]}).encode()


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last one is complete; keeps the latencies in nanoseconds."""

    def __init__(self, path: str, latencies: list[int]) -> None:
        headers = f"host: bench\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}"
        self._request = f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + BODY
        self._latencies = latencies
        self._buffer = b""
        self._sent = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter_ns()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length: ") + 16
        length = int(self._buffer[at : self._buffer.find(b"\r\n", at)])
        if len(self._buffer) < head + 4 + length:
            return
        if not self._buffer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"the server answered {self._buffer!r}")
        self._latencies.append(time.perf_counter_ns() - self._sent)
        self._buffer = b""
        self._send()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process tree so far: what neighbours on the machine cannot distort as they do wall time."""
    tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(sum(one.cpu_times()[:2]) for one in tree))


async def load(port: int, path: str, connections: int, seconds: float, pid: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies: list[int] = []
    transports = [
        (await loop.create_connection(lambda: Connection(path, latencies), "127.0.0.1", port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(1.0)  # warm-up
    latencies.clear()
    started, cpu_before = time.perf_counter(), cpu_seconds(pid)
    await asyncio.sleep(seconds)  # the measurement
    measured, elapsed = sorted(latencies), time.perf_counter() - started
    cpu = cpu_seconds(pid) - cpu_before
    for transport in transports:
        transport.abort()
    return {
        "connections": connections,
        "requests_per_s": round(len(measured) / elapsed),
        "p50_ms": round(measured[len(measured) // 2] / 1e6, 3),
        "p99_ms": round(measured[len(measured) * 99 // 100] / 1e6, 3),
        "server_cpu_us_per_request": round(cpu / len(measured) * 1e6, 1),
    }


@contextmanager
def server(command: list[str], port: int, environment: dict[str, str]) -> Iterator[int]:
    """A server process tree on core 0, ready; ended with the block."""
    process = subprocess.Popen(command, cwd=PROJECT, env=os.environ | environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(400):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)  # the server is starting
        else:
            raise SystemExit(f"{command} did not become ready")
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            os.sched_setaffinity(one.pid, {0})
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--port", type=int, default=3977)
    asked = parser.parse_args()
    if (os.cpu_count() or 1) > 1:
        os.sched_setaffinity(0, {1})
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        champion = constant_release(home / "releases", "m", 0.3)
        challenger = constant_release(home / "releases", "m", 0.7, semver="1.1.0")
        environment = {"SLIPWAY_HOME": folder, "BENTOML_DO_NOT_TRACK": "True"}
        environment["BENCH_ONNX"] = str(home / "releases" / champion / "model.onnx")
        bare = [
            sys.executable,
            "-m",
            "uvicorn",
            "benchmarks.bare_asgi:app",
            "--no-access-log",
            "--log-level",
            "warning",
        ]
        gateway = [sys.executable, "-m", "bentoml", "serve", "serving.service:Gateway"]
        single = Route(model="m", version=1, mode="single", champion=champion)
        shadow = Route(
            model="m",
            version=2,
            mode="shadow",
            champion=champion,
            challenger=challenger,
            rollout_id="r",
            shadow=True,
            salt="s",
        )
        for name, command, route in (
            ("bare ASGI + ONNX Runtime", bare, None),
            ("gateway, single", gateway, single),
            ("gateway, shadow 100 %", gateway, shadow),
        ):
            if route is not None:
                publish_route(home / "control.db", route)
            with server([*command, "--port", str(asked.port)], asked.port, environment) as pid:
                path = "/v2/models/m/infer"
                results[name] = uvloop.run(load(asked.port, path, asked.connections, asked.seconds, pid))
            print(f"{name:28} {results[name]}", flush=True)
    single_us, bare_us = (
        results[name]["server_cpu_us_per_request"] for name in ("gateway, single", "bare ASGI + ONNX Runtime")
    )
    ratio = bare_us / single_us
    print(f"by CPU time, the gateway serves {ratio:.2f} of the requests that the bare server does")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    record = {
        "commit": commit.strip(),
        "machine": machine,
        "results": results,
        "single_to_bare_by_cpu": round(ratio, 3),
    }
    (PROJECT / "benchmarks" / "results" / "gateway.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
