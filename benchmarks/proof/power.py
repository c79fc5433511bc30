"""How many requests of the challenger a fault costs without a shadow stage, in a canary at 5 %."""

from __future__ import annotations

from typing import Any

from benchmarks.proof.faults import by_round
from benchmarks.proof.policies import policy
from benchmarks.proof.runs import Job
from pipelines.rollout.catalogue import rates
from pipelines.rollout.simulator import Fault

SOON = "kpi -8 %, KPIs complete within ten minutes"
PROTOTYPE: dict[str, tuple[Fault, tuple[int, int]]] = {
    "errors .1 -> .5 %": (Fault(error_rate=0.004), (2671, 5652)),
    "errors .1 -> 1 %": (Fault(error_rate=0.009), (631, 1385)),
    "errors .1 -> 5 %": (Fault(error_rate=0.049), (68, 145)),
    "p50 +10 %": (Fault(latency_factor=1.1), (804, 1371)),
    "p99 x 2: 2 % five times slower": (Fault(tail_factor=5.0), (949, 1878)),
    "kpi -8 %": (Fault(kpi_factor=0.92), (590, 1039)),
    SOON: (Fault(kpi_factor=0.92), (590, 1039)),
}
"""Faults, and what a prototype of this design exposed: median and 90 %."""


def jobs(runs: int, requests: int, seed: int) -> list[Job]:
    """`runs` rollouts of each fault in one long canary."""
    found = []
    for place, (name, (fault, _)) in enumerate(PROTOTYPE.items()):
        soon = {"kpi_maturity_s": 600} if name == SOON else {}
        body = policy(requests, shadow=False, shares=(0.05,), **soon)
        found += [Job(key=f"{name}:{n}", policy=body, seed=seed + 10_000 * place + n, fault=fault) for n in range(runs)]
    return by_round(found)


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Exposed requests by fault, beside the prototype's."""
    found: dict[str, Any] = {}
    for name, (_, then) in PROTOTYPE.items():
        mine = [row for row in rows if row["key"].rpartition(":")[0] == name]
        if mine:
            found[name] = rates(mine) | {"prototype": list(then)}
    return found
