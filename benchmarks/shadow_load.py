"""What the champion feels of second arms: rounds with them, without, and with a core that somebody else keeps busy.

The last is the control. The shadow process takes what the worker leaves of its core, so that the core never rests, and
a core that never rests behaves otherwise by itself: it is quicker to wake, and on a shared host others get their turns
on it. What a process of the lowest priority that has nothing to do with the gateway brings about, the gateway cannot
help; so it is measured in the same run.
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.gateway import Setup
from benchmarks.gateway_load import SERVER_CORE, body, closed_loop, open_loop, server
from pipelines.contracts import events, segments
from tests.serving.processes import end_with_starter

LOADS = (0.5, 0.25)
"""Of saturation."""
ROUNDS = 30
"""Many short ones, since a machine's moods last seconds."""
MODES = ("off", "busy", "on")
_BUSY = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = numpy.random.default_rng(0).normal(size=(8, 10)).astype(numpy.float32)
while True:
    session.run(None, {"features": rows})
"""
"""The challenger's model, over and over."""


def shadow(setup: Setup, seconds: float) -> dict[str, Any]:
    """The champion's latencies in each mode, at shares of what the gateway saturates at with second arms."""
    setup.route("shadow")
    with server(setup.gateway(), setup.port, setup.environment) as pid, _somebody_else(setup) as other:
        saturation = closed_loop(setup.port, pid, body(1), 16, seconds)["requests_per_s"]
        print(f"\nshadow 100 %: saturates at {saturation:,} requests/s")
        loads = {share: _rounds(setup, pid, other, saturation * share, seconds / 2) for share in LOADS}
        time.sleep(2.0)  # the last second arms are scored
        pairs = _second_arms(setup)
    print(f"in the log: {pairs['promised']:,} second arms promised, {pairs['written']:,} written")
    slower, companies = pairs["second_slower"], pairs["compared"]
    print(f"logged latency: the second arm's is the longer one in {slower:.0%} of {companies:,} companies")
    return {"saturation": saturation, "loads": loads, "second_arms": pairs}


@contextmanager
def _somebody_else(setup: Setup) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the lowest priority on the server's core, stopped."""

    def on_the_core() -> None:
        end_with_starter()
        os.sched_setaffinity(0, {SERVER_CORE})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    command = [sys.executable, "-c", _BUSY, str(setup.onnx)]
    with subprocess.Popen(command, preexec_fn=on_the_core) as process:  # noqa: PLW1509 - three system calls
        try:
            time.sleep(2.0)  # it has its model
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def _rounds(setup: Setup, pid: int, other: subprocess.Popen[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Rounds at one rate, the modes in turns."""
    print(f"\nat {rate:,.0f} requests/s")
    rounds: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for _ in range(ROUNDS):
        for mode in MODES:
            setup.route("shadow" if mode == "on" else "single")
            time.sleep(0.6)  # the gateway looks for routes every 0.2 s
            if mode == "busy":
                other.send_signal(signal.SIGCONT)
            open_loop(setup.port, pid, body(1), connections=16, rate=rate, seconds=0.3)
            before = _second_arms_shed(setup)
            row = open_loop(setup.port, pid, body(1), connections=16, rate=rate, seconds=seconds)
            other.send_signal(signal.SIGSTOP)
            row["shed_share"] = round((_second_arms_shed(setup) - before) / row["requests"], 4)
            rounds[mode].append(row)
            text = f"  p90 {row['p90_ms']:7.3f} ms  p99 {row['p99_ms']:7.3f} ms  shed {row['shed_share']:6.1%}"
            print(f"{mode:4}  p50 {row['p50_ms']:7.3f} ms{text}", flush=True)
    found: dict[str, Any] = {"rate": rate, "rounds": rounds}
    for mode in ("on", "busy"):
        ratio = {name: ratio_of_medians(rounds[mode], rounds["off"], name) for name in ("p50_ms", "p90_ms", "p99_ms")}
        found[f"{mode}_over_off"] = ratio
        for name, one in ratio.items():
            low, high = one["interval"]
            print(f"{name} {mode} / off: {one['median']} by the medians of {ROUNDS} rounds each, 95 % {low} to {high}")
    found["shed_share"] = round(statistics.mean(row["shed_share"] for row in rounds["on"]), 4)
    print(f"shed at that rate: {found['shed_share']:.1%} of the second arms")
    return found


def ratio_of_medians(
    rounds: Sequence[Mapping[str, float]], others: Sequence[Mapping[str, float]], name: str
) -> dict[str, Any]:
    """The ratio of the rounds' medians, and its 95 % interval over 1,000 bootstrap draws (seeded) of pairs."""
    rng = np.random.default_rng(0)
    on, off = (np.array([row[name] for row in side]) for side in (rounds, others))
    drawn = rng.integers(0, len(on), (1000, len(on)))
    ratios = np.median(on[drawn], axis=1) / np.median(off[drawn], axis=1)
    low, high = (round(float(q), 3) for q in np.quantile(ratios, (0.025, 0.975)))
    return {"median": round(float(np.median(on) / np.median(off)), 3), "interval": [low, high]}


def _second_arms_shed(setup: Setup) -> int:
    """How many requests the worker has answered without their second arm, so far."""
    metrics = urllib.request.urlopen(f"http://127.0.0.1:{setup.port}/metrics", timeout=10).read().decode()
    shed = re.search(r"^slipway_shadow_shed_total\{.*\} (\S+)", metrics, re.MULTILINE)
    return int(float(shed[1])) if shed else 0


def _second_arms(setup: Setup) -> dict[str, float]:
    """What the log promises and holds of second arms; and in how many compared pairs the second took longer: half."""
    counted: dict[str, float] = {"promised": 0, "written": 0}
    compared: list[tuple[int, int]] = []
    for path in sorted((setup.home / "bus").rglob("*.seg")):
        for frame in segments.read_frames(path.read_bytes()):
            event = events.decode(frame.payload)
            if isinstance(event, events.Assignment):
                counted["promised"] += event.paired
            elif isinstance(event, events.Response):
                counted["written"] += event.shadow
                if event.beside_us is not None and event.beside_us != events.NOT_COMPARED:
                    compared.append((event.beside_us, event.latency_us))
    for at, arm in enumerate(("first", "second")):
        counted[f"{arm}_p50_us"] = statistics.median(pair[at] for pair in compared)
    slower = sum((second > first) + (second == first) / 2 for first, second in compared)
    return counted | {"compared": len(compared), "second_slower": round(slower / len(compared), 3)}
