"""What online features cost: three views of three entities a request, out of Redis and out of SQLite.

    serving/.venv/bin/python -m benchmarks.online_features [--seconds 3]

First the reading alone, in one process, beside the Feast SDK and redis-py over the same stores; then the gateway: one
row a request, a 200-tree LightGBM over the twelve features, routing and the log as always. The gateway has one worker
on core 0; wrk and Redis share core 1. Requests go round ten thousand entities. Prints both tables and writes
benchmarks/results/online_features.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway_load import CLIENT_CORE, Body, ask, closed_loop, gateway_command, gateway_environment, server
from benchmarks.provenance import PROJECT, RESULTS, record
from pipelines.contracts.routes import Route
from tests.builders import publish_route
from tests.redis_server import running_redis

BODIES = 500
MODEL = "bench"


def request_of(number: int) -> Body:
    inputs = [
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": [f"carrier-{number}"]},
        {"name": "route", "datatype": "BYTES", "shape": [1], "data": [f"EWR-{number}"]},
        {"name": "plane", "datatype": "INT64", "shape": [1], "data": [number]},
    ]
    return Body(json.dumps({"inputs": inputs}).encode(), {"content-type": "application/json"}, None)


def peers(verb: str, *arguments: object) -> Any:
    command = [PROJECT / ".venv/bin/python", "-m", "benchmarks.online_features_peers", verb, *map(str, arguments)]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def reading_table(home: Path, url: str, seconds: float) -> list[dict[str, Any]]:
    print(f"\nthree views read, one row{'':8} at once  reads/s   p50 ms   p99 ms  CPU us/read", flush=True)
    rows: list[dict[str, Any]] = peers("reads", home, url, seconds)
    for row in rows:
        print(
            f"{row['reader']:32} {row['at_once']:7} {row['reads_per_s']:8,} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}"
            f" {row['cpu_us_per_read']:12.1f}",
            flush=True,
        )
    return rows


def gateway_table(home: Path, url: str, seconds: float, port: int) -> dict[str, list[dict[str, float]]]:
    print(f"\ngateway, one row a request{'':8} conn  requests/s   p50 ms   p99 ms  CPU us/request", flush=True)
    found: dict[str, list[dict[str, float]]] = {}
    requests = [request_of(number * 19 % 10_000) for number in range(BODIES)]
    for kind in ("sqlite", "redis"):
        environment = gateway_environment(home) | {
            "SLIPWAY_ONLINE_STORE": kind,
            "SLIPWAY_REDIS_URL": url,
            # A neighbour on the machine may take Redis' processor for longer than a user would wait.
            "SLIPWAY_GATEWAY_FEATURES_BUDGET_MS": "1000",
        }
        with server(gateway_command(port), port, environment) as pid:
            answer = json.loads(ask(port, requests[0]))
            if answer["parameters"]["degraded"]:
                raise SystemExit(f"the gateway has no features: {answer}")
            found[kind] = [closed_loop(port, pid, requests, connections, seconds) for connections in (1, 16)]
        for row in found[kind]:
            print(
                f"three views, {kind:20} {row['connections']:5} {row['requests_per_s']:11,} {row['p50_ms']:8.3f}"
                f" {row['p99_ms']:8.3f} {row['cpu_us_per_request']:15.1f}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--port", type=int, default=3977)
    parser.add_argument("--no-record", action="store_true", help="write no record")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})  # inherited by Redis, wrk and the readers
    with tempfile.TemporaryDirectory() as folder, running_redis() as redis:
        home = Path(folder)
        digest = peers("prepare", home, redis.url)
        publish_route(home / "control.db", Route(model=MODEL, version=1, mode="single", champion=digest))
        results = {
            "reading": reading_table(home, redis.url, asked.seconds),
            "gateway": gateway_table(home, redis.url, asked.seconds, asked.port),
        }
    if not asked.no_record:
        record(RESULTS / "online_features.json", results)


if __name__ == "__main__":
    main()
