"""What `serving.batching` is worth for a heavy model: 800 LightGBM trees of 511 leaves, with and without it.

    serving/.venv/bin/python -m benchmarks.gateway_batching [--seconds 5]

One row a request, at rates that are parts of what the model does alone, and as fast as 64 connections go. A large model
misses the processor's caches for every row; a batch reads each tree once. CPU time a request is the figure to look at;
latency has the wait in it. Prints, and writes benchmarks/results/gateway_batching.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway_load import (
    CLIENT_CORE,
    MODEL,
    body,
    closed_loop,
    gateway_command,
    gateway_environment,
    open_loop,
    server,
)
from benchmarks.provenance import PROJECT, RESULTS, record
from pipelines.contracts.routes import Route
from tests.builders import publish_route

CONNECTIONS = 64
PARTS = (0.25, 0.75)


def measured(home: Path, port: int, seconds: float) -> dict[str, Any]:
    """The rows of both releases: at each part of the rate that the one without batching reaches, and at saturation."""
    command = [PROJECT / ".venv/bin/python", "-m", "benchmarks.gateway_release", str(home), "heavy"]
    made = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    gateway, environment = gateway_command(port), gateway_environment(home)
    found: dict[str, Any] = {}
    rates: list[float] = []
    print(f"\nrequests {'rate':>8} {'requests/s':>11} {'p50 ms':>8} {'p99 ms':>8} {'CPU us/request':>15}", flush=True)
    for version, (name, digest) in enumerate(json.loads(made).items(), 1):
        publish_route(home / "control.db", Route(model=MODEL, version=version, mode="single", champion=digest))
        with server(gateway, port, environment) as pid:
            saturated = closed_loop(port, pid, body(1), CONNECTIONS, seconds)
            rates = rates or [round(saturated["requests_per_s"] * part) for part in PARTS]
            rows = [
                {"rate": rate}
                | open_loop(port, pid, body(1), connections=CONNECTIONS, rate=rate, seconds=seconds)
                | {"requests_per_s": rate}
                for rate in rates
            ]
            found[name] = [*rows, {"rate": None} | saturated]
        for row in found[name]:
            rate = "any" if row["rate"] is None else f"{row['rate']:,}"
            print(
                f"{name:8} {rate:>8} {row['requests_per_s']:11,} {row['p50_ms']:8.2f} {row['p99_ms']:8.2f}"
                f" {row['cpu_us_per_request']:15.1f}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--port", type=int, default=3979)
    parser.add_argument("--no-record", action="store_true", help="write no record")
    asked = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), asked.port, asked.seconds)
    if not asked.no_record:
        record(RESULTS / "gateway_batching.json", {"max_size": 16, "max_wait_ms": 5, "one_row": found})


if __name__ == "__main__":
    main()
