"""Claim: every feasible fault of the catalogue is stopped in at least 99 % of rollouts, with fewer requests exposed
than by any rule that survives the healthy traps, all rules at equal false alarms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.proof.policies import policy
from benchmarks.proof.rules import RULES, Knob, alarm
from benchmarks.proof.runs import Job
from pipelines.rollout.catalogue import FAULTS, INFEASIBLE, TRAPS, rates, traffic_of, upper_bound

STOPPED = 0.99
FALSE = 0.01
PATIENCE = 2
"""How many times its length the last stage may go on, as live, for proofs that sticky units and their errors delay."""


def jobs(runs: int, requests: int, seed: int, ruled: int) -> list[Job]:
    """`runs` rollouts of each fault, those that cannot be promised included."""
    found = []
    everything = FAULTS | {name: fault for name, (fault, _) in INFEASIBLE.items()}
    for place, (name, fault) in enumerate(everything.items()):
        found += [
            Job(
                key=f"{name}:{n}", policy=policy(requests), seed=seed + 10_000 * place + n, fault=fault,
                traffic=traffic_of(name), ruled=n < ruled,
            )
            for n in range(runs)
        ]  # fmt: skip
    return by_round(found)


def trap_jobs(runs: int, requests: int, seed: int, ruled: int) -> list[Job]:
    """`runs` rollouts in each healthy trap."""
    found = []
    for place, (name, traffic) in enumerate(TRAPS.items()):
        body = policy(requests, unit="unit" if traffic.units else "request")
        found += [
            Job(
                key=f"{name}:{n}", policy=body, seed=seed + 10_000 * place + n, traffic=traffic, ruled=n < ruled,
                prolonged=PATIENCE if traffic.units else 1,
            )
            for n in range(runs)
        ]  # fmt: skip
    return by_round(found)


def by_round(jobs: list[Job]) -> list[Job]:
    """One of each before a second of any: stopped early, all have been played about as often."""
    return sorted(jobs, key=lambda job: int(job.key.rpartition(":")[2]))


def told(rows: list[dict[str, Any]], knobs: dict[str, Knob]) -> dict[str, Any]:
    """The claim in numbers, by fault."""
    found: dict[str, Any] = {}
    for name in [*FAULTS, *INFEASIBLE]:
        mine = [row for row in rows if row["key"].rpartition(":")[0] == name]
        if not mine:
            continue
        stopped = sum(row["verdict"] in ("rollback", "hold") for row in mine)
        found[name] = rates(mine) | {
            "stopped": stopped / len(mine),
            "stopped_lower_95": 1.0 - upper_bound(len(mine) - stopped, len(mine)),
            "why": INFEASIBLE[name][1] if name in INFEASIBLE else None,
            "rules": _rules(mine, knobs),
        }
    return found


def told_traps(rows: list[dict[str, Any]], knobs: dict[str, Knob]) -> dict[str, Any]:
    """What becomes of healthy challengers in each trap, and which rules stop too many of them."""
    found: dict[str, Any] = {}
    for name in TRAPS:
        mine = [row for row in rows if row["key"].rpartition(":")[0] == name]
        if mine:
            false = sum(row["verdict"] in ("rollback", "hold") for row in mine)
            upper = upper_bound(false, len(mine))
            found[name] = rates(mine) | {"stopped": false / len(mine), "stopped_upper_95": upper,
                                         "rules": _rules(mine, knobs)}  # fmt: skip
    return found


def survivors(traps: dict[str, Any]) -> list[str]:
    """The rules that stop at most 1 % of the rollouts in each trap (of fewer than 100: none but one)."""
    kept = []
    for rule in RULES:
        said = [trap["rules"][rule] for trap in traps.values() if rule in trap["rules"]]
        if said and all(found["stopped"] * found["runs"] <= max(1.0, FALSE * found["runs"]) for found in said):
            kept.append(rule)
    return kept


def _rules(rows: list[dict[str, Any]], knobs: dict[str, Knob]) -> dict[str, Any]:
    """By rule: share stopped and exposed requests, one that is never stopped counted as endless."""
    seen = [row for row in rows if "rules" in row]
    found: dict[str, Any] = {}
    for rule, knob in knobs.items() if seen else ():
        exposed = [alarm(row, rule, knob) for row in seen]
        endless = [np.inf if value is None else float(value) for value in exposed]
        middle, most = np.quantile(endless, [0.5, 0.9], method="higher").tolist()
        found[rule] = {
            "runs": len(seen),
            "stopped": sum(value is not None for value in exposed) / len(seen),
            "exposed_median": None if middle == np.inf else middle,
            "exposed_90": None if most == np.inf else most,
        }
    return found
