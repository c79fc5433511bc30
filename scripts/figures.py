"""Writes the measured figures into README.md from `benchmarks/results/*.json`; no number is typed by hand.

.venv/bin/python scripts/figures.py                                    rewrite README's section
.venv/bin/python scripts/figures.py --rehearsal var/demo/report.json   take a rehearsal's report up first
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
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
    healthy = found["healthy"]
    return [
        (
            f"Gates, {healthy['runs']} healthy rollouts of {4 * found['requests_per_stage']:,} requests: "
            f"{healthy['rollback']:.2%} rolled back (95 % upper bound {healthy['rollback_upper_95']:.2%}), "
            f"{healthy['hold']:.2%} held, {healthy['promote']:.1%} promoted. Faults and traps: [gates](docs/gates.md)."
        )
    ]


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


def main() -> None:
    """Rewrite the section between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearsal", type=Path, help="a report.json to take up")
    chosen = parser.parse_args()
    if chosen.rehearsal is not None:
        kept = take_up(json.loads(chosen.rehearsal.read_text()))
        (RESULTS / "rehearsal.json").write_text(json.dumps(kept, indent=1) + "\n")
    sections = []
    for name, lines_of in (
        ("rehearsal", rehearsal_lines),
        ("gates", gate_lines),
        ("rollback", rollback_lines),
    ):
        path = RESULTS / f"{name}.json"
        if path.exists():
            sections.append("\n".join(lines_of(json.loads(path.read_text()))))
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{BEGIN}\n" + "\n\n".join(sections) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
