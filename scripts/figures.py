"""Writes the measured figures into README.md and docs/ from `benchmarks/results/*.json`; no number is typed by hand.

.venv/bin/python scripts/figures.py                                    rewrite the sections
.venv/bin/python scripts/figures.py --rehearsal var/demo/report.json   take a rehearsal's report up first
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scripts.feature_figures import FEATURE_SECTIONS, feature_headlines
from scripts.gate_figures import GATE_SECTIONS, gate_headlines
from scripts.gateway_figures import GATEWAY_SECTIONS, gateway_headlines

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


def rehearsal_headlines(results: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """README's row about the rehearsal."""
    if (found := results.get("rehearsal")) is None:
        return []
    passed, of = found["checks"]
    return [
        (
            f"`make demo`: a year of flights on {found['machine']['cores']} cores, environments installed",
            f"{found['seconds'] / 60:.1f} minutes, {passed} of {of} checks hold",
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


Section = Callable[[dict[str, Any]], list[str]]
GROUPS: dict[str, Mapping[str, Section]] = {
    "The rehearsal and the nights": {"rehearsal": rehearsal_lines, "nightly": nightly_lines},
    "The gateway": GATEWAY_SECTIONS,
    "The gates": GATE_SECTIONS,
    "Features and streams": FEATURE_SECTIONS,
}
"""What `docs/figures.md` shows: under each heading, the lines of each result file."""


def headlines(results: dict[str, dict[str, Any]]) -> str:
    """README's table: a row for each of what people ask first."""
    rows = [*rehearsal_headlines(results), *gate_headlines(results), *gateway_headlines(results)]
    rows += feature_headlines(results)
    return "\n".join(["| what | measured |", "|---|---|", *(f"| {what} | {measured} |" for what, measured in rows)])


def every_line(results: dict[str, dict[str, Any]]) -> str:
    """All figures, under their headings."""
    parts = []
    for heading, sections in GROUPS.items():
        parts.append(f"## {heading}")
        parts += ["\n".join(lines_of(results[name])) for name, lines_of in sections.items() if name in results]
    return "\n\n".join(parts)


def main() -> None:
    """Rewrite the section between the marks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearsal", type=Path, help="a report.json to take up")
    chosen = parser.parse_args()
    if chosen.rehearsal is not None:
        kept = take_up(json.loads(chosen.rehearsal.read_text()))
        (RESULTS / "rehearsal.json").write_text(json.dumps(kept, indent=1) + "\n")
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    fill(ROOT / "README.md", "figures", headlines(results))
    fill(ROOT / "docs" / "figures.md", "figures", every_line(results))
    if "gateway_claims" in results:
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
