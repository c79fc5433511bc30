"""Three times what the gateway can do: what is accepted stays quick, the rest is told to come again, memory stays put.

    serving/.venv/bin/python -m benchmarks.overload [--seconds 20]

One worker on core 0 with the LightGBM release of `benchmarks.gateway`; the load comes from core 1. Capacity is
measured first, by a closed loop of wrk. Then requests of 100 rows arrive as a Poisson process, at half of it and at
three times it, whatever the answers do (open loop); latency counts from when a request was due. A request that finds no
free connection opens one. Every refusal must be a 429 with `Retry-After`; any other status ends the run.
Prints the tables and the slope of the worker's memory, and writes benchmarks/results/overload.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvloop

from benchmarks.gateway import Setup, record
from benchmarks.gateway_load import CLIENT_CORE, PATH, Body, body, closed_loop, cpu_seconds, server, tree
from serving.limits import Limits
from tests.free_ports import free_port

ROWS = 100
# Below the gateway's own limit: it is the wait for a turn that is under test.
MAX_CONNECTIONS = Limits().max_connections - 100
MEMORY_EVERY_S = 0.25
LATE_SHARE = 0.05
"""Of requests that were sent more than 10 ms after they were due: past it the load was not what it says."""


class Tally:
    """What came back, and what is still out."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.idle: list[Connection] = []
        self.open = self.most_open = 0
        self.late = 0


class Connection(asyncio.Protocol):
    """Sends one request at a time and sorts its answer."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._buffer = b""
        self.due = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self._tally.open -= 1

    def ask(self, due: float, message: bytes) -> None:
        self.due = due
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        told = self._buffer[:head].lower()
        at = told.find(b"content-length: ") + 16
        if len(self._buffer) < head + 4 + int(told[at:].split(b"\r\n", 1)[0]):
            return
        seconds = time.perf_counter() - self.due
        if told.startswith(b"http/1.1 200"):
            self._tally.accepted.append(seconds)
        elif told.startswith(b"http/1.1 429") and b"retry-after: " in told:
            self._tally.refused.append(seconds)
        else:
            raise SystemExit(f"the gateway answered {self._buffer[:500]!r}")
        self._buffer = b""
        self._tally.idle.append(self)


async def offered(port: int, request: Body, rate: float, seconds: float, memory: Memory) -> Tally:
    """Poisson arrivals at `rate` a second, however slowly the answers come."""
    loop, tally = asyncio.get_running_loop(), Tally()
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    head = f"POST {PATH} HTTP/1.1\r\nhost: bench\r\n{headers}content-length: {len(request.data)}\r\n\r\n"
    message = head.encode() + request.data

    async def fresh(due: float) -> None:
        _, connection = await loop.create_connection(lambda: Connection(tally), "127.0.0.1", port)
        connection.ask(due, message)

    rng = np.random.default_rng(7)
    opening: set[asyncio.Task[None]] = set()
    sent = 0
    for at in (time.perf_counter() + np.cumsum(rng.exponential(1 / rate, size=int(rate * seconds)))).tolist():
        # A spinning client keeps its times: the core is its own. Answers are read in between, also when it is late.
        await asyncio.sleep(0)
        while time.perf_counter() < at or not (tally.idle or tally.open < MAX_CONNECTIONS):  # noqa: ASYNC110 - spins
            await asyncio.sleep(0)
        tally.late += time.perf_counter() - at > 0.01
        sent += 1
        if tally.idle:
            tally.idle.pop().ask(at, message)
        else:
            tally.open += 1
            tally.most_open = max(tally.most_open, tally.open)
            opening.add(task := loop.create_task(fresh(at)))
            task.add_done_callback(opening.discard)
        memory.sample()
    deadline = time.perf_counter() + 10
    while len(tally.accepted) + len(tally.refused) < sent:
        if time.perf_counter() > deadline:
            raise SystemExit(f"{sent - len(tally.accepted) - len(tally.refused)} of {sent} requests got no answer")
        await asyncio.sleep(0.001)  # the last answers
    for connection in tally.idle:
        connection.transport.abort()
    return tally


class Memory:
    """Resident memory of a process tree over time."""

    def __init__(self, pid: int) -> None:
        self._processes = tree(pid)
        self._next = 0.0
        self.at: list[float] = []
        self.mib: list[float] = []

    def sample(self) -> None:
        """Look, when it is time to."""
        if (now := time.perf_counter()) >= self._next:
            self._next = now + MEMORY_EVERY_S
            self.at.append(now)
            self.mib.append(sum(one.memory_info().rss for one in self._processes) / 2**20)

    def slope(self) -> tuple[float, float]:
        """MiB a minute and its standard error, by least squares over the second half."""
        half = len(self.at) // 2
        minutes, mib = np.array(self.at[half:]) / 60, np.array(self.mib[half:])
        (slope, offset), residuals = np.polyfit(minutes, mib, 1), 0.0
        residuals = float(((mib - slope * minutes - offset) ** 2).sum())
        spread = float(((minutes - minutes.mean()) ** 2).sum())
        return float(slope), (residuals / max(1, len(mib) - 2) / spread) ** 0.5


def figures(tally: Tally, rate: float, seconds: float, cpu: float) -> dict[str, Any]:
    """One line of the table."""
    made: dict[str, Any] = {"offered_per_s": round(rate), "accepted_per_s": round(len(tally.accepted) / seconds)}
    made["refused_share"] = round(len(tally.refused) / (len(tally.refused) + len(tally.accepted)), 4)
    for name, latencies in (("accepted", tally.accepted), ("refused", tally.refused)):
        if latencies:
            milliseconds = np.array(latencies) * 1e3
            for label, share in (("p50", 50), ("p99", 99), ("max", 100)):
                made[f"{name}_{label}_ms"] = round(float(np.percentile(milliseconds, share)), 2)
    made["connections"] = tally.most_open
    made["sent_late_share"] = round(tally.late / (len(tally.refused) + len(tally.accepted)), 4)
    made["core_busy"] = round(cpu / seconds, 2)
    return made


def shed(port: int) -> float:
    """Requests refused with 429 by the gateway's own count."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith('slipway_refused_total{status="429"}'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    port, request = free_port(), body(ROWS)
    with tempfile.TemporaryDirectory(prefix="slipway-overload-") as folder:
        setup = Setup(Path(folder), port)
        setup.route("single")
        # The other benchmarks lift the limit on waiting; here it is what is measured.
        environment = setup.environment | {"SLIPWAY_GATEWAY_MAX_QUEUE_MS": str(Limits().max_queue_ms)}
        with server(setup.gateway(), port, environment) as pid:
            capacity = closed_loop(port, pid, request, 16, max(2.0, arguments.seconds / 5))
            print(f"capacity: {capacity['requests_per_s']} requests/s of {ROWS} rows, p99 {capacity['p99_ms']} ms")
            results: dict[str, Any] = {"rows": ROWS, "seconds": arguments.seconds, "capacity": capacity, "loads": {}}
            for factor in (0.5, 3.0):
                rate, memory = capacity["requests_per_s"] * factor, Memory(pid)
                before, refused_before = cpu_seconds(pid), shed(port)
                tally = uvloop.run(offered(port, request, rate, arguments.seconds, memory))
                line = figures(tally, rate, arguments.seconds, cpu_seconds(pid) - before)
                slope, error = memory.slope()
                line |= {"memory_mib": round(memory.mib[-1]), "memory_mib_per_minute": round(slope, 2)}
                line["memory_mib_per_minute_error"] = round(error, 2)
                assert shed(port) - refused_before == len(tally.refused), "every refusal is counted"
                results["loads"][str(factor)] = line
                print(f"{factor} x capacity: " + ", ".join(f"{name} {value}" for name, value in line.items()))
    bound_ms = Limits().max_queue_ms
    over = results["loads"]["3.0"]
    over["within_bound"] = over["accepted_p99_ms"] <= 3 * bound_ms
    results["max_queue_ms"] = bound_ms
    print(
        f"p99 of what was accepted at 3 x capacity: {over['accepted_p99_ms']} ms; a turn is waited for {bound_ms:g} ms"
    )
    if over["sent_late_share"] > LATE_SHARE:
        raise SystemExit("the client could not keep its times: the load was not what it says; no record")
    record("overload", results)


if __name__ == "__main__":
    main()
