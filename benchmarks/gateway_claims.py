"""Three claims about the gateway under load, beside the plain table of `benchmarks/gateway.py`:

    serving/.venv/bin/python -m benchmarks.gateway_claims [batch] [shadow] [memory] [--seconds 3] [--requests 2000000]

`batch`: rows a second with 100 rows a request, JSON and binary, beside the bare server and the model alone.
`shadow`: the champion's p99 at a half and a quarter of saturation, second arm on against off, in alternating rounds.
`memory`: the worker's memory over many requests; a slope whose 95 % interval lies below a bound is flat.
Prints, and writes benchmarks/results/gateway_claims.json, each claim with its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.gateway import BARE, Setup, check
from benchmarks.gateway_load import CLIENT_CORE, SERVER_CORE, ask, body, closed_loop, open_loop, server, tree
from benchmarks.provenance import RESULTS, provenance, record
from pipelines.contracts import events, segments

CLAIMS = ("batch", "shadow", "memory")
ROWS = 100
ROUNDS = 24
LOADS = (0.5, 0.25)
"""Of saturation, at which second arms are switched on and off."""
_OF_A_SECOND = 0.5
"""The share of `--seconds` that a round of `shadow` takes: many short rounds, since a machine's moods last seconds."""
FLAT_BYTES = 10.0
"""Bytes a request that a worker may grow by and still count as flat: 20 MB over 2 million requests."""
_MANY, _SAMPLES = 500_000, 12
"""Fewer requests are measured in shorter slices; a slope takes so many of them."""


def model_alone(setup: Setup, rows: int, seconds: float) -> float:
    """Rows a second of ONNX Runtime by itself, one thread, by CPU time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(setup.onnx), options, providers=["CPUExecutionProvider"])
    matrix = body(rows).matrix
    before, until, done = time.process_time(), time.perf_counter() + seconds, 0
    while time.perf_counter() < until:
        session.run(None, {"features": matrix})
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
            for form, request in (("JSON", body(ROWS)), ("binary", body(ROWS, binary=True))):
                if form == "JSON":
                    check(ask(setup.port, request), None, request, session)
                row = closed_loop(setup.port, pid, request, 16, seconds)
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


def shadow(setup: Setup, seconds: float) -> dict[str, Any]:
    """p99 of the champion with and without a second arm, at shares of what the gateway saturates at with it.

    At half of it, a core that answers few requests at a time has little left: see what is shed there.
    """
    request = body(1)
    setup.route("shadow")
    with server(setup.gateway(), setup.port, setup.environment) as pid:
        saturation = closed_loop(setup.port, pid, request, 16, seconds)["requests_per_s"]
        print(f"\nshadow 100 %: saturates at {saturation:,} requests/s")
        loads = {share: _on_and_off(setup, pid, saturation * share, seconds) for share in LOADS}
        time.sleep(2.0)  # the last second arms are scored
        pairs = second_arms(setup)
    print(f"in the log: {pairs['promised']:,} second arms promised, {pairs['written']:,} written")
    print(f"logged latency: the second arm's is the longer one in {pairs['second_slower']:.0%} of the pairs")
    return {"saturation": saturation, "loads": loads, "second_arms": pairs}


def _on_and_off(setup: Setup, pid: int, rate: float, seconds: float) -> dict[str, Any]:
    """Rounds at one rate, in turns."""
    print(f"\nat {rate:,.0f} requests/s")
    rounds: dict[str, list[dict[str, float]]] = {"off": [], "on": []}
    for number in range(2 * ROUNDS):
        mode = ("off", "on")[number % 2]
        setup.route("single" if mode == "off" else "shadow")
        time.sleep(0.6)  # the gateway looks for routes every 0.2 s
        open_loop(setup.port, pid, body(1), connections=16, rate=rate, seconds=0.5)
        before = second_arms_shed(setup)
        row = open_loop(setup.port, pid, body(1), connections=16, rate=rate, seconds=seconds * _OF_A_SECOND)
        row["shed_share"] = round((second_arms_shed(setup) - before) / row["requests"], 4)
        rounds[mode].append(row)
        text = f"  p90 {row['p90_ms']:7.3f} ms  p99 {row['p99_ms']:7.3f} ms  shed {row['shed_share']:6.1%}"
        print(f"second arm {mode:3}  p50 {row['p50_ms']:7.3f} ms{text}", flush=True)
    ratio = {name: _on_over_off(rounds, name) for name in ("p50_ms", "p90_ms", "p99_ms")}
    shed = round(statistics.mean(row["shed_share"] for row in rounds["on"]), 4)
    for name, found in ratio.items():
        low, high = found["interval"]
        print(f"{name} on / off: {found['median']} by the medians of {ROUNDS} rounds each, 95 % {low} to {high}")
    print(f"shed at that rate: {shed:.1%} of the second arms")
    return {"rate": rate, "rounds": rounds, "on_over_off": ratio, "shed_share": shed}


def _on_over_off(rounds: dict[str, list[dict[str, float]]], name: str) -> dict[str, Any]:
    """The ratio of the rounds' medians, and its 95 % interval over 1,000 bootstrap draws (seeded) of pairs."""
    rng = np.random.default_rng(0)
    on, off = (np.array([row[name] for row in rounds[mode]]) for mode in ("on", "off"))
    drawn = rng.integers(0, len(on), (1000, len(on)))
    ratios = np.median(on[drawn], axis=1) / np.median(off[drawn], axis=1)
    low, high = (round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975)))
    return {"median": round(float(np.median(on) / np.median(off)), 3), "interval": [low, high]}


def second_arms_shed(setup: Setup) -> int:
    """How many requests the worker has answered without their second arm, so far."""
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{setup.port}/metrics", timeout=10).read().decode()
    shed = re.search(r"^slipway_shadow_shed_total\{.*\} (\S+)", metrics, re.MULTILINE)
    return int(float(shed[1])) if shed else 0


def second_arms(setup: Setup) -> dict[str, float]:
    """What the log promises and holds of second arms; and in how many pairs the second took longer: half, at most."""
    counted: dict[str, float] = {"promised": 0, "written": 0}
    took: dict[bool, dict[str, int]] = {False: {}, True: {}}
    beside: dict[str, int] = {}
    for path in sorted((setup.home / "bus").rglob("*.seg")):
        for frame in segments.read_frames(path.read_bytes()):
            event = events.decode(frame.payload)
            if isinstance(event, events.Assignment):
                counted["promised"] += event.paired
            elif isinstance(event, events.Response):
                counted["written"] += event.shadow
                took[event.shadow][event.request_id] = event.latency_us
                if event.beside_us is not None:
                    beside[event.request_id] = event.beside_us
    compared = took[False] | beside
    pairs = [(compared[name], second) for name, second in took[True].items() if name in compared]
    for at, arm in enumerate(("first", "second")):
        counted[f"{arm}_p50_us"] = statistics.median(pair[at] for pair in pairs)
    slower = sum((second > first) + (second == first) / 2 for first, second in pairs)
    counted["second_slower"] = round(slower / len(pairs), 3)
    return counted


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
