"""How many cores, how much disk and money a load takes: a calculation on paper from the measured figures.

    serving/.venv/bin/python -m benchmarks.sizing [--rate 1000000] [--busy 0.5] [--core-hour 0.04]

Reads benchmarks/results/gateway.json and gateway_claims.json (`make bench` writes them); prints the table of
docs/how-to/size-the-gateway.md. `--busy` is how busy a core may be: the rest is for peaks and for a machine that fails.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any, NamedTuple

from benchmarks.gateway_load import FEATURES, MODEL
from benchmarks.provenance import RESULTS
from pipelines.contracts import segments
from pipelines.contracts.events import Assignment, Event, EventId, Response, encode

HOURS_A_MONTH = 730


class Case(NamedTuple):
    """One way to ask, and what a prediction of it costs."""

    name: str
    cpu_us: float
    log_bytes: float


def log_bytes(rows: int, *, second_arm: bool = False) -> float:
    """Bytes of the inference log a prediction: the events of one request with `rows` rows, framed, over its rows."""
    number, digest = 1_700_000_000_000_000, "0" * 64
    event_id = EventId("gw0", 0, number, 1_000_000)
    values = [0.123456] * rows
    common: dict[str, Any] = {"id": event_id, "model": MODEL, "request_id": "0" * 32, "event_us": number}
    common |= {"wall_us": number, "rollout_id": digest[:16] if second_arm else None}
    written: list[Event] = [
        Assignment(
            **common,
            arm="champion",
            share_ppm=0,
            salt="s",
            unit="0" * 32,
            mode="single",
            stage="live",
            route_version=1,
            champion=digest,
            rows=rows,
            inputs=dict.fromkeys(FEATURES, values),
        )
    ]
    written += [
        Response(
            **common, arm="champion", release=digest, status="ok", served=True, raw=values, score=values,
            outputs={"score": values}, latency_us=50, model_us=10,
        )
        for _ in range(1 + second_arm)
    ]  # fmt: skip
    return sum(len(segments.frame(0, encode(event))) for event in written) / rows


def _in_shadow(claims: dict[str, Any], alone_us: float) -> Case:
    """A request in a shadow stage, at the load that sheds fewest: both arms of those left are scored once more."""
    load = min(claims["shadow"]["loads"].values(), key=lambda one: one["shed_share"])
    on, off = (statistics.median(row["cpu_us_per_request"] for row in load["rounds"][mode]) for mode in ("on", "off"))
    paired, alone = 1 - load["shed_share"], log_bytes(1)
    logged = alone + paired * (log_bytes(1, second_arm=True) - alone)
    return Case("one row, in a shadow stage", alone_us + on - off, logged)


def cases(table: dict[str, Any], claims: dict[str, Any]) -> list[Case]:
    """What was measured, with 16 connections to one worker on one core."""
    one_row = {name: rows[-1]["cpu_us_per_request"] for name, rows in table["one_row"].items()}
    found = [
        Case("one row a request", one_row["gateway, champion"], log_bytes(1)),
        _in_shadow(claims, one_row["gateway, champion"]),
    ]
    rows = claims["batch"]["rows"]
    for form in ("JSON", "binary"):
        cpu_us = claims["batch"][f"gateway, {form}"]["cpu_us_per_request"] / rows
        found.append(Case(f"{rows} rows a request, {form}", cpu_us, log_bytes(rows)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1e6, help="predictions a second")
    parser.add_argument("--busy", type=float, default=0.5, help="how busy a core may be, 0 to 1")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core for an hour")
    asked = parser.parse_args()
    if missing := [name for name in ("gateway", "gateway_claims") if not (RESULTS / f"{name}.json").exists()]:
        raise SystemExit(f"nothing is measured yet on this machine: run benchmarks.{', benchmarks.'.join(missing)}")
    table, claims = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("gateway", "gateway_claims"))
    print(f"{asked.rate:,.0f} predictions/s, cores {asked.busy:.0%} busy, {asked.core_hour} a core and hour")
    print(f"measured at commit {table['commit'][:12]} on {table['machine']['cpus']} cores\n")
    print("| | CPU us a prediction | predictions/s a core | cores | log GB/s | price a month | a million |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for case in cases(table, claims):
        per_core = 1e6 / case.cpu_us * asked.busy
        cores = asked.rate / per_core
        log = asked.rate * case.log_bytes / 1e9
        million = cores * asked.core_hour / 3600 / asked.rate * 1e6
        print(
            f"| {case.name} | {case.cpu_us:.1f} | {per_core:,.0f} | {cores:,.0f} | {log:.2f}"
            f" | {cores * asked.core_hour * HOURS_A_MONTH:,.0f} | {million:.4f} |"
        )


if __name__ == "__main__":
    main()
