"""What the gateway costs beside its peers, in one run: bare ASGI + ONNX Runtime, FastAPI, BentoML's API, MLServer.

    serving/.venv/bin/python -m benchmarks.gateway [--seconds 3] [--only gateway,bare]

The model is a 200-tree LightGBM over 10 float features, trained, exported and bundled by the project's own code. Every
server has one worker on core 0 and the load generator is on core 1; all answer the same bytes with the same scores,
which is checked before anything is measured. The gateway does what it always does: it routes, writes both events of
every request to its log before the answer leaves, checks inputs and outputs, and counts.
Prints the tables and writes benchmarks/results/gateway.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from benchmarks.gateway_load import (
    CLIENT_CORE,
    FEATURES,
    MODEL,
    Body,
    ask,
    body,
    closed_loop,
    gateway_command,
    gateway_environment,
    server,
)
from benchmarks.provenance import PROJECT, RESULTS, record
from pipelines.contracts.routes import Route
from tests.builders import publish_route

PEERS = PROJECT / "benchmarks" / "peers"
BARE = "bare ASGI + ONNX Runtime"


class Setup:
    """A home with two releases, and the commands of all servers over it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        made = subprocess.run(
            [PROJECT / ".venv/bin/python", "-m", "benchmarks.gateway_release", str(home)],
            cwd=PROJECT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        self.digests: dict[str, str] = json.loads(made)
        self.onnx = home / "releases" / self.digests["champion"] / "model.onnx"
        self.version = 0
        self.environment = gateway_environment(home) | {"BENCH_ONNX": str(self.onnx)}

    def route(self, mode: str, **fields: Any) -> None:
        """Publish the next route; the gateway that starts next follows it."""
        self.version += 1
        if mode != "single":
            fields |= {"challenger": self.digests["challenger"], "rollout_id": "r", "salt": "s", "shadow": True}
        common = {"model": MODEL, "version": self.version, "champion": self.digests["champion"]}
        route = Route(mode=mode, **common, **fields)
        publish_route(self.home / "control.db", route)

    def gateway(self) -> list[str]:
        return gateway_command(self.port)

    def peers(self) -> dict[str, list[str]]:
        """Name to command of every peer."""
        uvicorn = ["-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--port", str(self.port)]
        bentoml = ["-m", "bentoml", "serve", "benchmarks.peers.bentoml_service:Peer", "--port", str(self.port)]
        folder = self.home / "mlserver"
        folder.mkdir(exist_ok=True)
        ports = {"http_port": self.port, "grpc_port": self.port + 1, "metrics_port": self.port + 2}
        quiet = {"host": "127.0.0.1", "debug": False, "parallel_workers": 0}
        (folder / "settings.json").write_text(json.dumps({**quiet, **ports}))
        runtime = {"name": MODEL, "implementation": "benchmarks.peers.mlserver_runtime.OnnxRuntime"}
        (folder / "model-settings.json").write_text(json.dumps(runtime))
        return {
            BARE: [sys.executable, *uvicorn, "benchmarks.bare_asgi:app"],
            "FastAPI": [sys.executable, *uvicorn, "benchmarks.peers.fastapi_app:app"],
            "BentoML API": [sys.executable, *bentoml],
            "MLServer": [str(PEERS / ".venv/bin/mlserver"), "start", str(folder)],
        }


def check(answer: bytes, length: str | None, request: Body, model: onnxruntime.InferenceSession) -> None:
    """End the run unless the server's scores are the model's."""
    expected = model.run(None, {"features": request.matrix})[0]
    decoded = msgspec.json.decode(answer if length is None else answer[: int(length)])
    (score,) = [one for one in decoded["outputs"] if one["name"] == "score"]
    if not np.allclose(score["data"], expected, atol=1e-6):
        raise SystemExit(f"the server's scores are not the model's: {score['data'][:3]} and {expected[:3]}")


def one_row_table(setup: Setup, only: list[str], seconds: float) -> dict[str, Any]:
    """Requests/s, latency and CPU of every server, one row a request."""
    session = onnxruntime.InferenceSession(str(setup.onnx), providers=["CPUExecutionProvider"])
    routes: list[tuple[str, tuple[str, dict[str, Any]] | None, list[str]]] = [
        ("gateway, champion", ("single", {}), setup.gateway()),
        ("gateway, canary 5 %", ("split", {"share_ppm": 50_000}), setup.gateway()),
        ("gateway, shadow 100 %", ("shadow", {}), setup.gateway()),
    ]
    servers = [(name, None, command) for name, command in setup.peers().items()] + routes
    found: dict[str, Any] = {}
    print(f"\none row a request{'':14} conn  requests/s   p50 ms   p99 ms  CPU us/request  core busy", flush=True)
    for name, route, command in servers:
        if only and not any(one.lower() in name.lower() for one in only):
            continue
        if route is not None:
            setup.route(route[0], **route[1])
        with server(command, setup.port, setup.environment) as pid:
            request = body(1)
            check(ask(setup.port, request), None, request, session)
            found[name] = []
            for connections in (1, 16):
                row = closed_loop(setup.port, pid, request, connections, seconds)
                found[name].append(row)
                print(
                    f"{name:30} {connections:5} {row['requests_per_s']:11,} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}"
                    f" {row['cpu_us_per_request']:15.1f} {row['core_busy']:10.2f}",
                    flush=True,
                )
    return found


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """CPU time a request of the bare server over that of every other, at 16 connections: 1 is as fast as bare."""
    bare = found[BARE][-1]["cpu_us_per_request"]
    return {name: round(bare / rows[-1]["cpu_us_per_request"], 3) for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--port", type=int, default=3977)
    parser.add_argument("--only", default="", help="parts of names of servers, comma separated; writes no record")
    asked = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install -y wrk")
    if not (PEERS / ".venv").is_dir():
        raise SystemExit("the peers' environment is missing: python3 scripts/setup.py --peers")
    os.sched_setaffinity(0, {CLIENT_CORE})
    only = [one for one in asked.only.split(",") if one]
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), asked.port)
        one_row = one_row_table(setup, only, asked.seconds)
    results: dict[str, Any] = {"features": len(FEATURES), "one_row": one_row}
    if BARE in one_row:
        results["bare_cpu_over_theirs"] = ratios(one_row)
        print("\nby CPU time, of the requests that the bare server does in the same time:")
        for name, ratio in results["bare_cpu_over_theirs"].items():
            print(f"{name:30} {ratio:.2f}")
    if not only:
        record(RESULTS / "gateway.json", results)


if __name__ == "__main__":
    main()
