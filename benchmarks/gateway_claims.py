"""Three claims about the gateway under load, beside the plain table of `benchmarks/gateway.py`:

    serving/.venv/bin/python -m benchmarks.gateway_claims [batch] [shadow] [memory] [--seconds 3] [--requests 2000000]

`batch`: rows a second with 100 rows a request, JSON and binary, beside the bare server and the model alone.
`shadow`: the champion's p99 with second arms on and off, at a half and a quarter of saturation.
`memory`: the worker's memory over many requests; a slope whose 95 % interval lies below a bound is flat.
Prints, and writes benchmarks/results/gateway_claims.json, each claim with its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.gateway import BARE, Setup, check
from benchmarks.gateway_load import CLIENT_CORE, SERVER_CORE, ask, body, closed_loop, server, tree
from benchmarks.provenance import RESULTS, provenance, record
from benchmarks.shadow_load import shadow

CLAIMS = ("batch", "shadow", "memory")
ROWS = 100
DIFFERENT = 64
"""Requests of a batch in turn. Asked the same again and again, a processor knows the way through the trees by heart:
the model alone is then almost twice as fast as on rows that it has not just seen.
"""
FLAT_BYTES = 10.0
"""Bytes a request that a worker may grow by and still count as flat: 20 MB over 2 million requests."""
_MANY, _SAMPLES = 500_000, 12
"""Fewer requests are measured in shorter slices; a slope takes so many of them."""


def model_alone(setup: Setup, rows: int, seconds: float) -> float:
    """Rows a second of ONNX Runtime by itself, one thread, by CPU time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(setup.onnx), options, providers=["CPUExecutionProvider"])
    matrices = [body(rows, seed=seed).matrix for seed in range(DIFFERENT)]
    before, until, done = time.process_time(), time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        session.run(None, {"features": matrices[done % DIFFERENT]})
        done += 1
    return done * rows / (time.process_time() - before)


def batch(setup: Setup, seconds: float) -> dict[str, Any]:
    """Rows a second of CPU, JSON and binary."""
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    alone = model_alone(setup, ROWS, seconds)
    os.sched_setaffinity(0, own)
    session = onnxruntime.InferenceSession(str(setup.onnx), providers=["CPUExecutionProvider"])
    found: dict[str, Any] = {"rows": ROWS, "model_alone_rows_per_cpu_s": round(alone)}
    print(f"\n{ROWS} rows a request{'':11} requests/s     rows/s  p99 ms  rows per CPU second  of the model alone")
    print(f"{'model alone':28} {'':10} {'':10} {'':7} {alone:20,.0f} {1:19.2f}")
    setup.route("single")
    for name, command in ((BARE, setup.peers()[BARE]), ("gateway", setup.gateway())):
        with server(command, setup.port, setup.environment) as pid:
            for form in ("JSON", "binary"):
                requests = [body(ROWS, binary=form == "binary", seed=seed) for seed in range(DIFFERENT)]
                if form == "JSON":
                    check(ask(setup.port, requests[0]), None, requests[0], session)
                row = closed_loop(setup.port, pid, requests, 16, seconds)
                per_cpu = ROWS / row["cpu_us_per_request"] * 1e6
                found[f"{name}, {form}"] = row | {"rows_per_cpu_s": round(per_cpu), "of_model": per_cpu / alone}
                print(
                    f"{name + ', ' + form:28} {row['requests_per_s']:10,} {row['requests_per_s'] * ROWS:10,}"
                    f" {row['p99_ms']:7.2f} {per_cpu:20,.0f} {per_cpu / alone:19.2f}",
                    flush=True,
                )
    found["binary_to_bare_server"] = round(
        found["gateway, binary"]["rows_per_cpu_s"] / found[f"{BARE}, binary"]["rows_per_cpu_s"], 3
    )
    print(f"binary: {found['binary_to_bare_server']:.2f} of the bare server's rows per CPU second")
    return found


def memory(setup: Setup, requests: int) -> dict[str, Any]:
    """The worker's own memory over many requests, and the slope's 95 % interval.

    Pages of files (libraries, the metrics that workers share) are left out: whose they are depends on who else runs.
    """
    setup.route("single")
    request = body(1)
    done, samples = 0, []
    slice_s = 5 if requests >= _MANY else 1
    with server(setup.gateway(), setup.port, setup.environment) as pid:
        worker = max(tree(pid), key=lambda one: one.memory_info().rss)
        print("\n   requests  worker MB", flush=True)
        while done < requests or len(samples) < _SAMPLES:
            row = closed_loop(setup.port, pid, request, 16, slice_s)
            done += row["requests"]
            for path in (setup.home / "bus").rglob("*.seg"):
                if time.time() - path.stat().st_mtime > 10:
                    path.unlink()  # shipped long ago, in production; 2 million requests are gigabytes
            held = worker.memory_info()
            samples.append((done, held.rss - held.shared))
            print(f"{done:11,} {samples[-1][1] / 1e6:10.1f}", flush=True)
    # The first tenth fills caches, the memory of client ids among them.
    kept = np.array([one for one in samples if one[0] > done / 10], dtype=np.float64)
    slope, low, high = _slope(kept[:, 0], kept[:, 1])
    flat = high < FLAT_BYTES
    print(f"slope {slope:.2f} bytes a request, 95 % interval {low:.2f} to {high:.2f}: {'flat' if flat else 'NOT FLAT'}")
    return {"samples": samples, "slope_bytes_per_request": slope, "interval": [low, high], "flat": flat}


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Theil-Sen slope, and the 2.5 and 97.5 % quantiles of it over 1,000 bootstrap draws (seeded)."""
    rng = np.random.default_rng(0)

    def slope_of(index: np.ndarray) -> float:
        at, value = x[index], y[index]
        i, j = np.triu_indices(len(at), 1)
        apart = at[j] != at[i]
        return float(np.median((value[j] - value[i])[apart] / (at[j] - at[i])[apart]))

    drawn = [slope_of(np.sort(rng.integers(0, len(x), len(x)))) for _ in range(1000)]
    return slope_of(np.arange(len(x))), *(float(q) for q in np.quantile(drawn, (0.025, 0.975)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=["batch", "shadow"], help=", ".join(CLAIMS))
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=2_000_000)
    parser.add_argument("--port", type=int, default=3978)
    asked = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    path = RESULTS / "gateway_claims.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    results = {name: known[name] for name in CLAIMS if name in known}
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(Path(folder), asked.port)
        measure: dict[str, Callable[[], dict[str, Any]]] = {
            "batch": lambda: batch(setup, asked.seconds),
            "shadow": lambda: shadow(setup, asked.seconds),
            "memory": lambda: memory(setup, asked.requests),
        }
        for name in asked.claims:
            # A run keeps the other claims of an earlier one: each says what it was measured at.
            results[name] = provenance() | measure[name]()
    record(path, results)


if __name__ == "__main__":
    main()
