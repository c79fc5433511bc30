"""Three times what the gateway can do: what is accepted stays quick, the rest is told to come again, memory stays put.

    serving/.venv/bin/python -m benchmarks.overload [--seconds 20]

One worker on core 0 with the LightGBM release of `benchmarks.gateway`; the load comes from core 1. Requests are 300
rows of binary data: so much work in so few bytes that the client's core can offer three times what the worker's can do.
Capacity is measured first, by a closed loop of wrk. Then requests arrive as a Poisson process, at half of it and at
three times it, whatever the answers do (open loop); at three times also with bodies that come in parts, which the
gateway takes in on another way. Latency counts from when a request, or its last part, was due. A request that finds no
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
from typing import Any, NamedTuple

import httpx
import numpy as np
import uvloop

from benchmarks.gateway import Setup
from benchmarks.gateway_load import CLIENT_CORE, PATH, body, closed_loop, cpu_seconds, server, tree
from benchmarks.http_asking import Asking, request_bytes
from benchmarks.provenance import RESULTS, record
from serving.limits import Limits
from tests.free_ports import free_port

ROWS = 300
LOADS = [("half of capacity", 0.5, False), ("3 x capacity", 3.0, False), ("3 x capacity, bodies in parts", 3.0, True)]
# A body's last bytes come so much later.
LAST_BYTES, PAUSE_S = 100, 0.002
# Below the gateway's own limit: it is the wait for a turn that is under test.
MAX_CONNECTIONS = Limits().max_connections - 100
MEMORY_EVERY_S = 0.25
TICK_S = 0.001
LATE_S, LATE_SHARE = 0.01, 0.05
"""Past this share of requests that were sent so much after they were due, the load was not what it says."""
WITHIN = 3
"""Accepted requests may take so many times the limit on waiting: what was on its way when a turn of the loop began has
waited in the kernel for the turn before it, too."""


class Load(NamedTuple):
    """Requests a second, and how their bodies come."""

    rate: float
    in_parts: bool


class Tally:
    """What came back, and what is still out."""

    def __init__(self) -> None:
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.idle: list[Connection] = []
        self.open = self.most_open = 0
        self.late = 0


class Connection(Asking):
    """Sorts the answers to its requests."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def connection_lost(self, _: Exception | None) -> None:
        self._tally.open -= 1

    def ask_in_parts(self, due: float, message: bytes) -> None:
        """Send a request whose last bytes come later; its latency counts from when those were due."""
        self.ask(due + PAUSE_S, message[:-LAST_BYTES])
        asyncio.get_running_loop().call_later(PAUSE_S, self.transport.write, message[-LAST_BYTES:])

    def answered(self, seconds: float, head: bytes, answer: bytes) -> None:
        if head.startswith(b"http/1.1 200"):
            self._tally.accepted.append(seconds)
        elif head.startswith(b"http/1.1 429") and b"retry-after: " in head:
            self._tally.refused.append(seconds)
        else:
            raise SystemExit(f"the gateway answered {answer[:500]!r}")
        self._tally.idle.append(self)


async def offered(port: int, message: bytes, load: Load, seconds: float, memory: Memory) -> Tally:
    """Poisson arrivals at the load's rate, however slowly the answers come."""
    loop, tally = asyncio.get_running_loop(), Tally()

    def ask(connection: Connection, due: float) -> None:
        (connection.ask_in_parts if load.in_parts else connection.ask)(due, message)

    async def fresh(due: float) -> None:
        _, connection = await loop.create_connection(lambda: Connection(tally), "127.0.0.1", port)
        ask(connection, due)

    rng = np.random.default_rng(7)
    opening: set[asyncio.Task[None]] = set()
    sent = 0
    arrivals = np.cumsum(rng.exponential(1 / load.rate, size=int(load.rate * seconds)))
    for at in (time.perf_counter() + arrivals).tolist():
        # It sleeps, and keeps its times to a tick: a client that spins would read its answers late.
        while time.perf_counter() < at or not (tally.idle or tally.open < MAX_CONNECTIONS):  # noqa: ASYNC110 - a clock
            await asyncio.sleep(TICK_S)
        tally.late += time.perf_counter() - at > LATE_S
        sent += 1
        if tally.idle:
            ask(tally.idle.pop(), at)
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


def measured(setup: Setup, port: int, seconds: float) -> dict[str, Any]:
    """The gateway's capacity, and what it does with each load."""
    request = body(ROWS, binary=True)
    message = request_bytes(PATH, request.headers, request.data)
    # The other benchmarks lift the limit on waiting; here it is what is measured.
    environment = setup.environment | {"SLIPWAY_GATEWAY_MAX_QUEUE_MS": str(Limits().max_queue_ms)}
    with server(setup.gateway(), port, environment) as pid:
        capacity = closed_loop(port, pid, request, 16, max(2.0, seconds / 5))
        print(f"capacity: {capacity['requests_per_s']} requests/s of {ROWS} rows, p99 {capacity['p99_ms']} ms")
        loads: dict[str, Any] = {}
        for name, factor, in_parts in LOADS:
            load, memory = Load(capacity["requests_per_s"] * factor, in_parts), Memory(pid)
            before, refused_before = cpu_seconds(pid), shed(port)
            tally = uvloop.run(offered(port, message, load, seconds, memory))
            line = figures(tally, load.rate, seconds, cpu_seconds(pid) - before)
            slope, error = memory.slope()
            line |= {"memory_mib": round(memory.mib[-1]), "memory_mib_per_minute": round(slope, 2)}
            line["memory_mib_per_minute_error"] = round(error, 2)
            assert shed(port) - refused_before == len(tally.refused), "every refusal is counted"
            loads[name] = line
            print(f"{name}: " + ", ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    return {"rows": ROWS, "seconds": seconds, "capacity": capacity, "loads": loads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--no-record", action="store_true", help="print only")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    port, bound_ms = free_port(), Limits().max_queue_ms
    with tempfile.TemporaryDirectory(prefix="slipway-overload-") as folder:
        setup = Setup(Path(folder), port)
        setup.route("single")
        results = measured(setup, port, arguments.seconds) | {"max_queue_ms": bound_ms}
    for name, line in results["loads"].items():
        line["within_bound"] = line["accepted_p99_ms"] <= WITHIN * bound_ms
        print(f"{name}: p99 of what was accepted {line['accepted_p99_ms']} ms; a turn is waited for {bound_ms:g} ms")
    if any(line["sent_late_share"] > LATE_SHARE for line in results["loads"].values()):
        raise SystemExit("the client could not keep its times: the load was not what it says; no record")
    if not arguments.no_record:
        record(RESULTS / "overload.json", results)


if __name__ == "__main__":
    main()
