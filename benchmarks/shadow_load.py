"""What the champion feels of second arms: rounds with them and without, in turns, at a fixed rate.

A shared host takes a core away for milliseconds, about once a second, and that moment's requests would be every
round's slowest hundredth. So quantiles are taken in slices of a fifth of a second, most of which no such moment falls
into, and compared by their medians. What happens to few slices only is seen in the quantiles of whole rounds, which are
printed beside them.
"""

from __future__ import annotations

import re
import statistics
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.gateway import Setup
from benchmarks.gateway_load import body, closed_loop, cpu_seconds, open_loop_ms, server
from pipelines.contracts import events, segments

LOADS = (0.5, 0.25)
"""Of saturation."""
ROUNDS = 60
"""Many short ones, since a machine's moods last seconds."""
SLICE_S = 0.2
QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99}
_MODES = {"off": "single", "on": "shadow"}


def shadow(setup: Setup, seconds: float) -> dict[str, Any]:
    """The champion's latencies in each mode, at shares of what the gateway saturates at with second arms."""
    setup.route("shadow")
    with server(setup.gateway(), setup.port, setup.environment) as pid:
        saturation = closed_loop(setup.port, pid, body(1), 16, seconds)["requests_per_s"]
        print(f"\nshadow 100 %: saturates at {saturation:,} requests/s")
        loads = {share: _rounds(setup, pid, saturation * share, seconds / 3) for share in LOADS}
        time.sleep(2.0)  # the last second arms are scored
        pairs = _second_arms(setup)
    print(f"in the log: {pairs['promised']:,} second arms promised, {pairs['written']:,} written")
    slower, companies = pairs["second_slower"], pairs["compared"]
    print(f"logged latency: the second arm's is the longer one in {slower:.0%} of {companies:,} companies")
    return {"saturation": saturation, "loads": loads, "second_arms": pairs}


def _rounds(setup: Setup, pid: int, rate: float, seconds: float) -> dict[str, Any]:
    """Rounds at one rate, the modes in turns."""
    print(f"\nat {rate:,.0f} requests/s")
    measured: dict[str, list[np.ndarray]] = {mode: [] for mode in _MODES}
    used_s: dict[str, list[float]] = {mode: [] for mode in _MODES}
    shed = 0
    for number in range(ROUNDS):
        for mode in list(_MODES) if number % 2 else reversed(_MODES):
            setup.route(_MODES[mode])
            time.sleep(0.6)  # the gateway looks for routes every 0.2 s
            open_loop_ms(setup.port, body(1), connections=16, rate=rate, seconds=0.3)
            shed_before, used_before = _second_arms_shed(setup), cpu_seconds(pid)
            measured[mode].append(open_loop_ms(setup.port, body(1), connections=16, rate=rate, seconds=seconds))
            used_s[mode].append(cpu_seconds(pid) - used_before)
            shed += _second_arms_shed(setup) - shed_before
        if (number + 1) % 20 == 0:
            print(f"round {number + 1} of {ROUNDS}", flush=True)
    slices = {mode: [sliced(one, round(seconds / SLICE_S)) for one in rounds] for mode, rounds in measured.items()}
    whole = {mode: [sliced(one, 1) for one in rounds] for mode, rounds in measured.items()}
    for mode, rounds in slices.items():
        medians = np.median(np.concatenate(rounds), axis=0)
        print(f"{mode:4}" + "".join(f"  {name} {ms:7.3f}" for name, ms in zip(QUANTILES, medians, strict=True)))
    found: dict[str, Any] = {
        "rate": rate,
        "on_over_off": ratios(slices["on"], slices["off"]),
        "on_over_off_of_rounds": ratios(whole["on"], whole["off"]),
        "shed_share": round(shed / sum(map(len, measured["on"])), 4),
        "rounds": {
            mode: [
                dict(zip(QUANTILES, np.median(of_slices, axis=0).round(4).tolist(), strict=True))
                | {"cpu_us_per_request": round(used / len(latencies) * 1e6, 1)}
                for of_slices, used, latencies in zip(slices[mode], used_s[mode], measured[mode], strict=True)
            ]
            for mode in _MODES
        },
    }
    for name in QUANTILES:
        for key, of_what in (("on_over_off", "medians of slices"), ("on_over_off_of_rounds", "of rounds")):
            low, high = found[key][name]["interval"]
            print(f"{name} on / off, {of_what}: {found[key][name]['ratio']} (95 % {low} to {high})")
    print(f"shed at that rate: {found['shed_share']:.1%} of the second arms")
    return found


def sliced(latencies: np.ndarray, slices: int) -> np.ndarray:
    """The quantiles of each slice [slices, QUANTILES] of latencies [requests], in the order in which they came."""
    return np.array([np.quantile(one, list(QUANTILES.values())) for one in np.array_split(latencies, slices)])


def ratios(on: Sequence[np.ndarray], off: Sequence[np.ndarray]) -> dict[str, Any]:
    """The ratio of the medians over all slices of the rounds [slices, QUANTILES], and its 95 % interval over 1,000
    bootstrap draws (seeded) of pairs of rounds.
    """
    sides = np.array(on), np.array(off)
    drawn = np.random.default_rng(0).integers(0, len(on), (1000, len(on)))

    def ratio(rounds: np.ndarray) -> np.ndarray:
        over, under = (np.median(side[rounds].reshape(-1, len(QUANTILES)), axis=0) for side in sides)
        return np.asarray(over / under)

    low, high = np.quantile([ratio(rounds) for rounds in drawn], (0.025, 0.975), axis=0)
    middle = ratio(np.arange(len(on)))
    return {
        name: {"ratio": round(float(middle[at]), 3), "interval": [round(float(low[at]), 3), round(float(high[at]), 3)]}
        for at, name in enumerate(QUANTILES)
    }


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
