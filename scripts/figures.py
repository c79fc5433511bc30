"""Writes the measured figures into README.md and docs from `benchmarks/results/*.json`; no number is typed by hand.

.venv/bin/python scripts/figures.py                                    rewrite the sections
.venv/bin/python scripts/figures.py --rehearsal var/demo/report.json   take a rehearsal's report up first
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from scripts.feature_figures import FEATURE_SECTIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OUTCOMES = {"promote": "promoted", "rollback": "rolled back", "none": "nothing to do"}


def take_up(report: dict[str, Any]) -> dict[str, Any]:
    """What of a rehearsal's report is kept in the repository."""
    return {
        **{key: report[key] for key in ("commit", "variant", "seed", "size", "machine", "started", "seconds", "ok")},
        "checks": [sum(check["ok"] for check in report["checks"]), len(report["checks"])],
        "acts": [
            {
                **{key: act[key] for key in ("title", "outcome", "ok", "requests", "seconds")},
                "dag_runs": len(act["dag_runs"]),
                "exposed": sum(rollout["exposed"] for rollout in act["rollouts"]),
                "to_route": [
                    decision["route_seconds"]
                    for rollout in act["rollouts"]
                    for decision in rollout["decisions"]
                    if decision["route_seconds"] is not None
                ],
            }
            for act in report["acts"]
        ],
    }


def rehearsal_lines(found: dict[str, Any]) -> list[str]:
    """The rehearsal as a table."""
    to_route = sorted(seconds for act in found["acts"] for seconds in act["to_route"])
    passed, of = found["checks"]
    lines = [
        (
            f"`make demo` (seed {found['seed']}, commit `{found['commit'][:12]}`, {found['machine']['cores']} cores, "
            f"environments installed): {found['seconds'] / 60:.1f} minutes, {passed} of {of} checks hold."
        ),
        "",
        "| act | outcome | requests | exposed to the challenger | DAG runs | seconds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {act['title']} | {OUTCOMES[act['outcome']]} | {act['requests']:,} | {act['exposed']:,} | {act['dag_runs']} "
        f"| {act['seconds']:.0f} |"
        for act in found["acts"]
    ]
    lines += [
        "",
        (
            f"From a decision to its route, through Airflow: median {statistics.median(to_route):.2f} s, "
            f"longest {to_route[-1]:.2f} s of {len(to_route)}."
        ),
    ]
    return lines


def gate_lines(found: dict[str, Any]) -> list[str]:
    """How often the gates were wrong."""
    lines = []
    for name in ("healthy", "healthy_small"):
        if name in found:
            healthy, stage = found[name], found["played"][name]["asked"]["requests_per_stage"]
            lines.append(
                f"Gates, {healthy['runs']:,} healthy rollouts of {4 * stage:,} requests: "
                f"{healthy['rollback']:.2%} rolled back (95 % upper bound {healthy['rollback_upper_95']:.2%}), "
                f"{healthy['hold']:.2%} held ({healthy['hold_upper_95']:.2%}), {healthy['promote']:.1%} promoted."
            )
    lines.append("Margins, faults and traps, beside the rules in use today: [gates](docs/gates.md).")
    return ["\n".join(lines)]


def rollback_lines(found: dict[str, Any]) -> list[str]:
    """How long a challenger goes on answering after it was decided that it must not."""
    every = found["results"]["all"]
    ways = "; ".join(
        f"{way} {result['median_ms']:.0f} / {result['p99_ms']:.0f} ms"
        for way, result in found["results"].items()
        if way != "all"
    )
    return [
        (
            f"From a decision to the challenger's last answer, over {found['workers']} workers and {every['trials']} "
            f"trials: median {every['median_ms']:.0f} ms, p99 {every['p99_ms']:.0f} ms, "
            f"longest {every['max_ms']:.0f} ms (median / p99: {ways})."
        )
    ]


def gateway_lines(found: dict[str, Any]) -> list[str]:
    """The gateway beside its peers."""
    lines = [
        (
            f"One row a request, 16 connections, one worker on one core, load from the other (`make bench`, commit "
            f"`{found['commit'][:12]}`; the gateway routes, checks, and writes both events before it answers):"
        ),
        "",
        "| server | requests/s | p99, ms | CPU a request, us | of the bare server, by CPU |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, rows in found["one_row"].items():
        row, ratio = rows[-1], found["bare_cpu_over_theirs"][name]
        cells = (f"{row['requests_per_s']:,}", f"{row['p99_ms']:.1f}", f"{row['cpu_us_per_request']:.0f}")
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")
    return lines


def claim_lines(found: dict[str, Any]) -> list[str]:
    """Batches, second arms, memory."""
    lines = []
    if batch := found.get("batch"):
        ours = batch["gateway, binary"]
        lines.append(
            f"{batch['rows']} rows a request, binary: {ours['rows_per_cpu_s']:,} rows a second of CPU, "
            f"{ours['of_model']:.2f} of the model alone, {batch['binary_to_bare_server']:.2f} of the bare server.\n"
        )
    if shadow := found.get("shadow"):
        rounds, ratio = len(shadow["rounds"]["on"]), shadow["on_over_off"]["p99_ms"]
        low, high = ratio["interval"]
        lines.append(
            f"Shadow on all requests, at {shadow['rate']:,.0f} requests/s (half of saturation): the champion's p99 is "
            f"{ratio['median']:.2f} of that without (medians of {rounds} rounds each, 95 % {low:.2f} to {high:.2f}); "
            f"{shadow['shed_share']:.1%} of the second arms were shed."
        )
    if memory := found.get("memory"):
        low, high = memory["interval"]
        lines.append(
            f"Memory of a worker over {memory['samples'][-1][0]:,} requests: {memory['slope_bytes_per_request']:.2f} "
            f"bytes a request (95 % interval {low:.2f} to {high:.2f})."
        )
    return lines


def feature_lines(found: dict[str, Any]) -> list[str]:
    """The gateway with online features."""
    return [
        "One row with three feature views, 16 connections: "
        + "; ".join(
            f"{name} {rows[-1]['requests_per_s']:,} requests/s, p99 {rows[-1]['p99_ms']:.1f} ms"
            for name, rows in found["gateway"].items()
        )
        + "."
    ]


def kill_lines(found: dict[str, Any]) -> list[str]:
    """What was acknowledged and what was found after kills."""
    counted = found["results"]
    return [
        (
            f"{sum(found['kills'].values())} `kill -9` ({', '.join(sorted(found['kills']))}) under load, seed "
            f"{found['seed']}: {counted['acknowledged']:,} requests acknowledged of {counted['sent']:,} sent, "
            f"{counted['found']:,} of them found exactly once."
        )
    ]


def overload_lines(found: dict[str, Any]) -> list[str]:
    """What is accepted and what is refused past capacity."""
    loads = "; ".join(
        f"{name}: {line['refused_share']:.0%} refused with 429, what is accepted p50 {line['accepted_p50_ms']:.0f} ms, "
        f"p99 {line['accepted_p99_ms']:.0f} ms"
        for name, line in found["loads"].items()
    )
    return [f"Load past capacity ({found['max_queue_ms']:g} ms is the longest wait for a turn): {loads}."]


def decision_lines(found: dict[str, Any]) -> list[str]:
    """From the deciding event to the challenger's silence."""
    results = found["results"]
    ways = "; ".join(
        f"{way} median {result['median_s']:.2f} s, {'p99' if result['trials'] >= 100 else 'longest'} "
        f"{result['p99_s']:.2f} s of {result['trials']} (goal {result['goal_p99_s']:g} s)"
        for way, result in results.items()
        if isinstance(result, dict)
    )
    low, high = results.get("load_average", (0, 0))
    shared = f", on a machine that others used too (load average {low:.0f} to {high:.0f})" if high else ""
    return [
        (
            f"From the deciding event to the challenger's last answer, the whole system under "
            f"{results['requests_per_s']} requests/s{shared}: {ways}."
        )
    ]


def rollout_kill_lines(found: dict[str, Any]) -> list[str]:
    """Rollouts whose processes were killed."""
    total = found["results"]
    killed = ", ".join(f"{name} {count}" for name, count in total["kills"].items())
    return [
        (
            f"{sum(total['kills'].values())} `kill -9` in {total['rollouts']} live rollouts ({killed}), seed "
            f"{found['seed']}: {len(total['wrong']) or 'none'} ended wrong; chains and replays hold."
        )
    ]


def live_lines(found: dict[str, Any]) -> list[str]:
    """Live judgements against the lake alone."""
    results = found["results"]
    return [
        (
            f"Live judgements judged again from the lake alone, without the control database, seed {found['seed']}: "
            f"{results['compared'] - results['differences']:,} of {results['compared']:,} are the same bytes."
        )
    ]


def nightly_lines(found: dict[str, Any]) -> list[str]:
    """The nightly path."""
    seconds = found["seconds"]
    return [
        (
            f"A night of both models on all flights, new rows to registered releases, as DAG runs: "
            f"{seconds['dag_runs']:.0f} s, {seconds['ratio']:.2f} of the same steps in one process "
            f"({seconds['bare']:.0f} s)."
        )
    ]


SECTIONS = {
    "rehearsal": rehearsal_lines,
    "nightly": nightly_lines,
    "gateway": gateway_lines,
    "gateway_claims": claim_lines,
    "online_features": feature_lines,
    "rollback": rollback_lines,
    "overload": overload_lines,
    "kills": kill_lines,
    "gates": gate_lines,
    "decision_latency": decision_lines,
    "rollout_kills": rollout_kill_lines,
    "live_offline": live_lines,
    **FEATURE_SECTIONS,
}


def main() -> None:
    """Rewrite the section between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearsal", type=Path, help="a report.json to take up")
    chosen = parser.parse_args()
    if chosen.rehearsal is not None:
        kept = take_up(json.loads(chosen.rehearsal.read_text()))
        (RESULTS / "rehearsal.json").write_text(json.dumps(kept, indent=1) + "\n")
    sections = []
    for name, lines_of in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            sections.append("\n".join(lines_of(json.loads(path.read_text()))))
    fill(ROOT / "README.md", "figures", "\n\n".join(sections))
    if (RESULTS / "gateway_claims.json").exists():
        fill(ROOT / "docs" / "how-to" / "size-the-gateway.md", "sizing", sizing())


def sizing() -> str:
    """The calculation on paper; made in the environment whose events it counts."""
    command = [str(ROOT / "serving" / ".venv" / "bin" / "python"), "-m", "benchmarks.sizing"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def fill(page: Path, name: str, text: str) -> None:
    """Put `text` between the page's marks of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
