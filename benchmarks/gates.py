"""How often the gates are wrong: false stops on healthy rollouts, false promotions at the margins, faults found and
what they cost, beside the rules in use today. Each claim has its file in `benchmarks/proof`.

    python -m benchmarks.gates --runs 300 --faults 20 --out benchmarks/results/gates.json
    python -m benchmarks.gates --collect --out benchmarks/results/gates.json --docs docs/gates.md

Every rollout is kept as it is played (`--work`), so a run that was stopped goes on where it was, and `--collect` tells
what has been played so far without playing more. `--again N` plays N of each claim once more by the code as it is now,
and says whether they come out as they did: a proof holds for later code that decides alike.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.proof import faults, healthy, margins, plans, power
from benchmarks.proof.report import write_into
from benchmarks.proof.runs import Ledger, code, play, played_again
from benchmarks.provenance import PROJECT, provenance, record

Rows = list[dict[str, Any]]
CLAIMS = ("healthy", "healthy_small", "margins", "traps", "faults", "power", "plans")


def claims(given: argparse.Namespace) -> dict[str, tuple[dict[str, Any], Callable[[], Sequence[Any]]]]:
    """By claim: what is asked (kept beside the outcomes), and its rollouts."""
    size, seed, ruled = given.requests, given.seed, given.ruled
    asked = {"requests_per_stage": size, "seed": seed}
    return {
        "healthy": (asked, lambda: healthy.jobs(given.runs, size, seed, ruled)),
        "healthy_small": (
            {"requests_per_stage": given.small, "seed": seed + 5_000_000},
            lambda: healthy.jobs(given.small_runs, given.small, seed + 5_000_000, 0),
        ),
        "margins": (asked, lambda: margins.jobs(given.margins, size, seed + 10_000_000)),
        "traps": (asked, lambda: faults.trap_jobs(given.traps, size, seed + 20_000_000, ruled)),
        "faults": (asked, lambda: faults.jobs(given.faults, size, seed + 30_000_000, min(ruled, given.faults))),
        "power": (asked, lambda: power.jobs(given.power, 5 * size, seed + 40_000_000)),
        "plans": ({"seed": seed + 50_000_000}, lambda: plans.jobs(given.plans, seed + 50_000_000)),
    }


def told(rows: dict[str, Rows]) -> dict[str, Any]:
    """All claims in numbers, from the outcomes there are."""
    found: dict[str, Any] = {}
    knobs = healthy.knobs(rows["healthy"]) if rows.get("healthy") else {}
    for name in ("healthy", "healthy_small"):
        if rows.get(name):
            found[name] = healthy.told(rows[name])
    if rows.get("margins"):
        found["margins"] = margins.told(rows["margins"])
    if rows.get("traps"):
        found["traps"] = faults.told_traps(rows["traps"], knobs)
        found["survivors"] = faults.survivors(found["traps"])
    if rows.get("faults"):
        found["faults"] = faults.told(rows["faults"], knobs)
    if rows.get("power"):
        found["power"] = power.told(rows["power"])
    if rows.get("plans"):
        found["plans"] = plans.told(rows["plans"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", help=f"{', '.join(CLAIMS)}; default: all")
    parser.add_argument("--runs", type=int, default=300, help="healthy rollouts")
    parser.add_argument("--requests", type=int, default=20_000, help="requests of each stage")
    parser.add_argument("--small-runs", type=int, default=0, help="healthy rollouts of fewer requests")
    parser.add_argument("--small", type=int, default=2_000, help="requests of each stage of those")
    parser.add_argument("--margins", type=int, default=100, help="rollouts at each margin")
    parser.add_argument("--traps", type=int, default=20, help="rollouts in each healthy trap")
    parser.add_argument("--faults", type=int, default=20, help="rollouts of each fault")
    parser.add_argument("--power", type=int, default=100, help="rollouts of each fault without a shadow stage")
    parser.add_argument("--plans", type=int, default=51, help="rollouts of each question the planner is asked")
    parser.add_argument("--ruled", type=int, default=200, help="rollouts of a kind that today's rules see too")
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=PROJECT / "var" / "proof" / "gates", help="where outcomes are kept"
    )
    parser.add_argument("--collect", action="store_true", help="play nothing, tell what there is")
    parser.add_argument("--again", type=int, default=0, help="rollouts of each claim to play once more")
    parser.add_argument("--out", type=Path, default=None, help="where the numbers go (JSON)")
    parser.add_argument("--docs", type=Path, default=None, help="page whose section of measured figures is replaced")
    given = parser.parse_args()
    known = claims(given)
    if unknown := set(given.claims) - set(known):
        parser.error(f"no such claim: {', '.join(sorted(unknown))}")
    rows: dict[str, Rows] = {}
    heads: dict[str, Any] = {}
    again: dict[str, Any] = {}
    for name, (asked, jobs) in known.items():
        held = given.work / f"{name}.jsonl"
        wanted = name in (given.claims or known) and not given.collect
        if not wanted and not held.exists():
            continue
        ledger = Ledger(given.work, name, None if given.collect else asked)
        heads[name] = {key: ledger.head[key] for key in ("commit", "machine", "code", "asked")}
        play_of = plans.play if name == "plans" else play
        rows[name] = ledger.complete(jobs(), given.processes, play_of) if wanted else ledger.rows
        print(f"{name}: {len(rows[name])} rollouts", file=sys.stderr, flush=True)
        if given.again:
            again[name] = played_again(rows[name], jobs(), given.again, play_of)
            print(f"  played again: {again[name]}", file=sys.stderr)
    result: dict[str, Any] = {"played": heads}
    if again:
        result["played_again"] = {"commit": provenance()["commit"], "code": code(), "claims": again}
    result |= told(rows)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        record(given.out, result)
    else:
        print(json.dumps(result, indent=1))
    if given.docs is not None:
        write_into(given.docs, result)


if __name__ == "__main__":
    main()
