"""Servers under load: started on one core, asked by wrk (closed loop) or at a fixed rate (open loop) from another.

CPU time of the server's process tree is kept beside the times: it is the figure that neighbours on a busy machine
distort least.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import uvloop

from benchmarks.http_asking import Asking, request_bytes
from benchmarks.provenance import PROJECT
from tests.serving.processes import end_group, end_with_starter

MODEL = "bench"
FEATURES = [f"f{k}" for k in range(10)]
PATH = f"/v2/models/{MODEL}/infer"
SERVER_CORE, CLIENT_CORE = 0, (1 if (os.cpu_count() or 1) > 1 else 0)
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class Body(NamedTuple):
    """One request's bytes, its headers, and the matrix it stands for."""

    data: bytes
    headers: dict[str, str]
    matrix: np.ndarray


def body(rows: int, *, binary: bool = False, seed: int = 0) -> Body:
    """A request of `rows` seeded rows, as JSON or with binary tensor data in both directions."""
    matrix = np.random.default_rng((rows, seed)).normal(size=(rows, len(FEATURES))).astype(np.float32)
    if not binary:
        inputs = [
            {"name": name, "datatype": "FP32", "shape": [rows], "data": [round(float(v), 6) for v in matrix[:, k]]}
            for k, name in enumerate(FEATURES)
        ]
        data = json.dumps({"inputs": inputs}).encode()
        sent = np.array([one["data"] for one in inputs], dtype=np.float32).T
        return Body(data, {"content-type": "application/json"}, sent)
    head: dict[str, Any] = {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [rows], "parameters": {"binary_data_size": 4 * rows}}
            for name in FEATURES
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(text))}
    return Body(text + b"".join(matrix[:, k].tobytes() for k in range(len(FEATURES))), headers, matrix)


def gateway_command(port: int) -> list[str]:
    """The gateway under BentoML, on this port of this machine."""
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-m", "bentoml", "serve", "serving.service:Gateway", *where]


def gateway_environment(home: Path) -> dict[str, str]:
    """One worker over this home."""
    return {
        "SLIPWAY_HOME": str(home),
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "SLIPWAY_GATEWAY_WORKERS": "1",
        # On a busy machine a server may get no processor for longer than a request may wait by default.
        "SLIPWAY_GATEWAY_MAX_QUEUE_MS": "60000",
    }


@contextmanager
def server(command: list[str], port: int, environment: dict[str, str], cwd: Path = PROJECT) -> Iterator[int]:
    """A server's process tree on the server's core, ready; ended with the block. Gives its pid."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})  # inherited by every process and thread of the server
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=end_with_starter,  # noqa: PLW1509 - one system call, of a library that is loaded already
        )
        os.sched_setaffinity(0, own)
        try:
            deadline = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).read()
                    break
                except OSError as error:
                    if getattr(error, "code", 0) == 404:  # a peer without health pages answers
                        break
                    if process.poll() is not None or time.monotonic() > deadline:
                        output.seek(0)
                        text = output.read().decode(errors="replace")
                        raise SystemExit(f"{command} did not become ready:\n{text}") from error
                    time.sleep(0.1)  # the server is starting
            yield process.pid
        finally:
            end_group(process)


def ask(port: int, request: Body) -> bytes:
    """One answer's body."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{PATH}", data=request.data, headers=request.headers)
    with urllib.request.urlopen(asked, timeout=10) as answer:
        data: bytes = answer.read()
    return data


def tree(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """CPU time of a process tree so far."""
    return float(sum(sum(one.cpu_times()[:2]) for one in tree(pid)))


def closed_loop(
    port: int, pid: int, request: Body | Sequence[Body], connections: int, seconds: float
) -> dict[str, float]:
    """wrk: every connection asks again as soon as it has its answer, of several requests in turn. Milliseconds."""
    requests = [request] if isinstance(request, Body) else list(request)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        for number, one in enumerate(requests):
            (Path(folder) / f"body{number}").write_bytes(one.data)
        headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in requests[0].headers.items())
        script.write_text(
            f"{headers}local made, at = {{}}, 0\n"
            f"function init(args)\n"
            f"  for n = 0, {len(requests) - 1} do\n"
            f'    local file = io.open("{folder}/body" .. n, "rb")\n'
            f'    made[n] = wrk.format("POST", nil, nil, file:read("*a"))\n'
            f"    file:close()\n"
            f"  end\n"
            f"end\n"
            f"function request()\n"
            f"  at = (at + 1) % {len(requests)}\n"
            f"  return made[at]\n"
            f"end\n"
        )
        command = ["wrk", "-t1", f"-c{connections}", "--latency", "-s", str(script), f"http://127.0.0.1:{port}{PATH}"]
        subprocess.run([*command, "-d1"], check=True, capture_output=True)
        before, started = cpu_seconds(pid), time.perf_counter()
        text = subprocess.run(
            [*command, f"-d{max(1, round(seconds))}"], check=True, capture_output=True, text=True
        ).stdout
        cpu, elapsed = cpu_seconds(pid) - before, time.perf_counter() - started
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"the server did not answer everything:\n{text}")
    done = int(_found(r"(\d+) requests in", text)[1])
    return {
        "connections": connections,
        "requests": done,
        "requests_per_s": round(float(_found(r"Requests/sec:\s+([\d.]+)", text)[1])),
        "p50_ms": _milliseconds("50%", text),
        "p99_ms": _milliseconds("99%", text),
        "cpu_us_per_request": round(cpu / done * 1e6, 1),
        "core_busy": round(cpu / elapsed, 2),
    }


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern} in wrk's report:\n{text}")
    return match


def _milliseconds(percentile: str, text: str) -> float:
    number, unit = _found(rf"{percentile}\s+([\d.]+)(us|ms|s|m)", text).groups()
    return round(float(number) * _UNITS[unit], 3)


class _Connection(Asking):
    """Notes the latency of each answer, which has to be a 200, and is idle again."""

    def __init__(self, latencies: list[float], idle: list[_Connection]) -> None:
        super().__init__()
        self._latencies = latencies
        self._idle = idle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._idle.append(self)

    def answered(self, seconds: float, head: bytes, answer: bytes) -> None:
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(f"the server answered {answer!r}")
        self._latencies.append(seconds)
        self._idle.append(self)


async def _open_loop(port: int, request: Body, connections: int, rate: float, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    idle: list[_Connection] = []
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(latencies, idle), "127.0.0.1", port)
    message = request_bytes(PATH, request.headers, request.data)
    rng = np.random.default_rng(7)
    due = time.perf_counter() + np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds)))
    for at in due.tolist():
        # A spinning client keeps its times: the core is its own. Answers are read in between.
        while time.perf_counter() < at or not idle:  # noqa: ASYNC110 - spins on purpose
            await asyncio.sleep(0)
        idle.pop().ask(at, message)
    while len(idle) < connections:  # noqa: ASYNC110 - state of protocols, after the measurement
        await asyncio.sleep(0.001)
    for one in idle:
        one.transport.abort()
    return latencies


def open_loop_ms(port: int, request: Body, *, connections: int, rate: float, seconds: float) -> np.ndarray:
    """Poisson arrivals at `rate` a second: the latencies [requests] in milliseconds, in the order of the answers.

    They count from when a request was due, so a late client hides none.
    """
    gc.disable()  # a round of the client's garbage collector would pass for the server's latency
    try:
        return np.array(uvloop.run(_open_loop(port, request, connections, rate, seconds))) * 1e3
    finally:
        gc.enable()


def open_loop(port: int, pid: int, request: Body, *, connections: int, rate: float, seconds: float) -> dict[str, float]:
    """Quantiles of `open_loop_ms`, and the processor time that the server took."""
    before = cpu_seconds(pid)
    measured = np.sort(open_loop_ms(port, request, connections=connections, rate=rate, seconds=seconds))
    cpu = cpu_seconds(pid) - before
    tenth = round(len(measured) * 0.1)
    return {
        "requests": len(measured),
        "p50_ms": round(float(measured[len(measured) // 2]), 4),
        "p90_ms": round(float(measured[-tenth]), 4),
        "p99_ms": round(float(measured[len(measured) * 99 // 100]), 4),
        "cpu_us_per_request": round(cpu / len(measured) * 1e6, 1),
    }
