"""How often the gates are wrong: false stops on healthy rollouts, stops on faults, beside the rules in use today.

    python benchmarks/gates.py --runs 300 --faults 20 --processes 2 --out benchmarks/results/gates.json

Every rollout is judged after every row over all metrics, slices and stages together. Peers see the same rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.rollout.catalogue import FAULTS, TRAPS, outcome, rates
from pipelines.rollout.offline import judge
from pipelines.rollout.planner import plan
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
from pipelines.rollout.simulator import HEALTHY, START_US, Fault, Traffic, simulate

METRICS: list[dict[str, Any]] = [
    {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.003, "weight": 0.25},
    {"name": "invalid_score", "kind": "event", "weight": 0.10},
    {"name": "latency_p50", "kind": "quantile", "q": 0.50, "harm_ratio": 1.05, "promote_margin_rel": 0.10,
     "weight": 0.125},
    {"name": "latency_p99", "kind": "quantile", "q": 0.99, "harm_ratio": 1.20, "promote_margin_rel": 0.20,
     "weight": 0.125},
    {"name": "score_shift", "kind": "paired_mean", "tolerance_rel": 0.25, "weight": 0.05},
    {"name": "score_disagreement", "kind": "paired_abs", "tolerance_abs": 0.05, "weight": 0.05},
    {"name": "logloss", "kind": "paired_loss", "clip": 0.01, "harm_rel": 0.01, "promote_margin_rel": 0.03,
     "weight": 0.20},
    {"name": "kpi", "kind": "mean", "range": [0, 10], "better": "higher", "harm_rel": 0.02, "promote_margin_rel": 0.05,
     "weight": 0.10},
]  # fmt: skip


def policy(requests: int, *, shadow: bool = True, canary_only: bool = False, **changes: Any) -> dict[str, Any]:
    """The policy of the table: shadow, then 5, 20 and 50 %."""
    stages: list[dict[str, Any]] = [{"name": "shadow", "share": None, "requests": requests}] if shadow else []
    shares = [0.05] if canary_only else [0.05, 0.2, 0.5]
    stages += [{"name": f"canary_{round(100 * s):02d}", "share": s, "requests": requests} for s in shares]
    return {
        "schema": "slipway-gate/1",
        "budget": {"rollback": 0.01, "hold": 0.01, "promote": 0.05},
        "unit": "request",
        "warmup_requests": 200,
        "response_deadline_s": 30,
        "label_maturity_s": 3600,
        "stages": stages,
        "slices": ["slice"],
        "metrics": METRICS,
        "integrity": ["sample_ratio", "lost_responses", "duplicates"],
    } | changes


MEASURED = "## Measured"
FOOTNOTE = """\
Faults run through shadow and canaries; those marked *only served* have no shadow stage. A rollout of sticky units has
as many observations a stage as units: 2,000 of them cannot prove these margins, and the end is `inconclusive`, not a
stop."""


# --- rules in use today, on the same rows ------------------------------------------------------------------------


def _words(column: pa.ChunkedArray) -> np.ndarray:
    """A dictionary column as an array of its words."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return np.asarray(array.dictionary.to_pylist())[array.indices.to_numpy()]


def _canary(tables: dict[str, pa.Table]) -> dict[str, np.ndarray]:
    """Per answered canary request, in order: minute, whether it is the challenger's, error, latency."""
    arm = _words(tables["assignments"]["arm"])
    answers = tables["responses"]
    request = answers["request_id"].to_numpy()
    keep = arm[request] != "both"
    request = request[keep]
    return {
        "minute": (answers["ts"].cast(pa.int64()).to_numpy()[keep] - START_US) // 60_000_000,
        "challenger": arm[request] == "challenger",
        "error": _words(answers["status"])[keep] == "error",
        "latency": answers["latency_ms"].to_numpy()[keep],
    }


def _per_minute(rows: dict[str, np.ndarray], mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    minute = rows["minute"] - rows["minute"].min()
    size = int(minute.max()) + 1
    return np.bincount(minute[mask], minlength=size), np.bincount(minute[mask & rows["error"]], minlength=size)


def success_rate(rows: dict[str, np.ndarray], *, limit: int) -> bool:
    """Success rate of the challenger >= 99 % in every minute, with a failure limit (Argo style)."""
    total, errors = _per_minute(rows, rows["challenger"])
    failed = (total > 0) & (errors > 0.01 * total)
    return int(failed.sum()) > limit


def failed_checks(rows: dict[str, np.ndarray], *, limit: int) -> bool:
    """`limit` failed checks of a success rate of 99 % (Flagger style)."""
    return success_rate(rows, limit=limit - 1)


def peeking_z(rows: dict[str, np.ndarray], *, every: int = 60, level: float = 2.576) -> bool:
    """A two-proportion z-test on errors, looked at every hour at 1 %."""
    total1, error1 = (np.cumsum(x)[::every] for x in _per_minute(rows, rows["challenger"]))
    total0, error0 = (np.cumsum(x)[::every] for x in _per_minute(rows, ~rows["challenger"]))
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (error1 + error0) / (total1 + total0)
        z = (error1 / total1 - error0 / total0) / np.sqrt(pooled * (1 - pooled) * (1 / total1 + 1 / total0))
    return bool(np.nanmax(np.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0)) > level)


def latency_z(rows: dict[str, np.ndarray], *, every: int = 2000, level: float = 2.576) -> bool:
    """A z-test on log latency, looked at every 2,000 requests at 1 %."""
    x, arm = np.log(rows["latency"]), rows["challenger"]
    for n in range(every, len(x) + 1, every):
        one, zero = x[:n][arm[:n]], x[:n][~arm[:n]]
        if len(one) > 30 and (one.mean() - zero.mean()) > level * np.sqrt(
            one.var() / len(one) + zero.var() / len(zero)
        ):
            return True
    return False


def mann_whitney(rows: dict[str, np.ndarray], *, windows: int = 10) -> bool:
    """A Mann-Whitney test on latency at 98 % in each of ten windows, most of which must fail (Kayenta style)."""
    from scipy.stats import mannwhitneyu

    failed = 0
    for part in np.array_split(np.arange(len(rows["latency"])), windows):
        one, zero = rows["latency"][part][rows["challenger"][part]], rows["latency"][part][~rows["challenger"][part]]
        if len(one) > 20:
            failed += mannwhitneyu(one, zero, alternative="greater").pvalue < 0.02
    return failed > windows // 2


PEERS: dict[str, Callable[[dict[str, np.ndarray]], bool]] = {
    "success rate >= 99 % per minute, failure limit 0": lambda rows: success_rate(rows, limit=0),
    "success rate >= 99 % per minute, failure limit 3": lambda rows: success_rate(rows, limit=3),
    "5 failed checks": lambda rows: failed_checks(rows, limit=5),
    "10 failed checks": lambda rows: failed_checks(rows, limit=10),
    "hourly z-test on errors": peeking_z,
    "z-test on latency every 2,000 requests": latency_z,
    "Mann-Whitney on latency at 98 %, most of ten windows": mann_whitney,
}


# --- runs --------------------------------------------------------------------------------------------------------


def one(job: tuple[dict[str, Any], int, Traffic, Fault, bool]) -> dict[str, Any]:
    """One rollout, judged; and the peers' words on the same rows."""
    body, seed, traffic, fault, peers = job
    tables = simulate(Policy.parse(body), seed=seed, traffic=traffic, fault=fault)
    started = time.process_time()
    lines = judge(body, tables)
    seconds = time.process_time() - started
    rows = _canary(tables) if peers else {}
    said = {name: rule(rows) for name, rule in PEERS.items()} if peers else {}
    spent = {"seconds": seconds, "requests": tables["assignments"].num_rows, "peers": said}
    return outcome(lines) | spent


def run(jobs: list[tuple[dict[str, Any], int, Traffic, Fault, bool]], processes: int) -> list[dict[str, Any]]:
    """All jobs, in order, over some processes."""
    if processes <= 1:
        return [one(job) for job in jobs]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(one, jobs, chunksize=4))


def benchmark(*, runs: int, faults: int, requests: int, seed: int, processes: int) -> dict[str, Any]:
    """The whole table as plain data."""
    body = policy(requests)
    healthy = run([(body, seed + n, Traffic(), HEALTHY, True) for n in range(runs)], processes)
    peers = {name: sum(row["peers"][name] for row in healthy) / runs for name in PEERS}
    table: dict[str, Any] = {"healthy": rates(healthy), "peers": peers, "traps": {}, "faults": {}}
    for number, (name, traffic) in enumerate(TRAPS.items()):
        chosen = body | {"unit": "unit"} if traffic.units else body
        found = run(
            [(chosen, seed + 10_000 * (number + 1) + n, traffic, HEALTHY, False) for n in range(faults)], processes
        )
        table["traps"][name] = rates(found)
    for number, (name, fault) in enumerate(FAULTS.items()):
        chosen = policy(requests, shadow=not fault.only_served)
        found = run(
            [(chosen, seed + 1_000_000 + 10_000 * number + n, Traffic(), fault, False) for n in range(faults)],
            processes,
        )
        table["faults"][name] = rates(found)
    table["requests_per_s_per_core"] = sum(r["requests"] for r in healthy) / sum(r["seconds"] for r in healthy)
    return table


def planner(requests: int) -> dict[str, Any]:
    """What the planner says of the same policy."""
    base = {
        "requests_per_hour": 7200,
        "labelled": 0.93,
        "metrics": {
            "error_rate": {"rate": 0.001, "effect": 10.0}, "invalid_score": {"rate": 0.0002, "effect": 50.0},
            "latency_p50": {"sigma": 0.42, "effect": 1.1}, "latency_p99": {"sigma": 0.42, "effect": 2.0},
            "logloss": {"mean": 0.53, "paired_sd": 0.15}, "kpi": {"mean": 5.0, "sd": 2.0, "effect": 0.4},
        },
    }  # fmt: skip
    return plan(Policy.parse(policy(requests)), Rates.parse(base)).to_mapping()


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def markdown(result: dict[str, Any]) -> str:
    """The section "Measured" of docs/gates.md."""
    healthy, size = result["healthy"], result["requests_per_stage"]
    speed = round(result["requests_per_s_per_core"], -3)
    lines = [MEASURED]
    lines.append(
        f"`python benchmarks/gates.py`, seed {result['seed']}, {size:,} requests in each stage, looked at all the"
    )
    lines.append("time over all metrics, slices and stages together.")
    lines.append(f"{result['machine']}; {speed:,.0f} requests/s of processor time on one core.")
    lines += ["", "| judge | false stops on healthy rollouts |", "|---|---|"]
    bound = _percent(healthy["rollback_upper_95"])
    stops = f"{_percent(healthy['rollback'])} rollback (exact 95 % bound {bound}), {_percent(healthy['hold'])} hold"
    lines.append(f"| these gates, {healthy['runs']} rollouts | {stops}; {_percent(healthy['promote'])} promoted |")
    lines += [f"| {name} | {_percent(share)} |" for name, share in result["peers"].items()]
    lines += ["", "| healthy trap (rollouts) | stopped | promoted | paused on the way |", "|---|---|---|---|"]
    for name, found in result["traps"].items():
        shares = [found["rollback"] + found["hold"], found["promote"], found["paused"]]
        lines.append(f"| {name} ({found['runs']}) | " + " | ".join(_percent(share) for share in shares) + " |")
    lines += ["", "| fault (rollouts) | stopped | by | exposed requests, median / 90 % |", "|---|---|---|---|"]
    for name, found in result["faults"].items():
        stopped, by = _percent(found["rollback"] + found["hold"]), ", ".join(found["by"])
        middle, most = found["exposed_median"], found["exposed_90"]
        exposed = "-" if middle is None else f"{middle:.0f} / {most:.0f}"
        lines.append(f"| {name} ({found['runs']}) | {stopped} | {by} | {exposed} |")
    lines += ["", FOOTNOTE]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="healthy rollouts")
    parser.add_argument("--faults", type=int, default=20, help="rollouts of each trap and fault")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of each stage")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--docs", type=Path, default=None, help="page whose section of measured figures is replaced")
    given = parser.parse_args()
    started = time.time()
    result = {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "seed": given.seed,
        "requests_per_stage": given.requests,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        **benchmark(
            runs=given.runs, faults=given.faults, requests=given.requests, seed=given.seed, processes=given.processes
        ),
        "plan": planner(given.requests),
        "seconds": None,
    }
    result["seconds"] = round(time.time() - started, 1)
    text = json.dumps(result, indent=2) + "\n"
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
    if given.docs is not None:
        page = given.docs.read_text(encoding="utf-8")
        given.docs.write_text(page.partition(MEASURED)[0] + markdown(result), encoding="utf-8")
    print(text)
    healthy = result["healthy"]
    if healthy["rollback_upper_95"] > 0.01 or healthy["hold_upper_95"] > 0.01:
        print(f"the 95 % upper bound of false stops is not below 1 % after {healthy['runs']} runs", file=sys.stderr)


if __name__ == "__main__":
    main()
