"""Claim: a challenger as good as the champion is rolled back, and held, in at most 1 % of rollouts.

Everything together: all metrics, slices and stages, looked at after every row. The first of them are shown to the rules
in use today as well, whose thresholds are set on them.
"""

from __future__ import annotations

from typing import Any

from benchmarks.proof.policies import policy
from benchmarks.proof.rules import METRICS, RULES, Knob, calibrate
from benchmarks.proof.runs import Job
from pipelines.rollout.catalogue import rates

LEVEL = 0.01
"""False alarms every rule is allowed."""


def jobs(runs: int, requests: int, seed: int, ruled: int) -> list[Job]:
    """`runs` healthy rollouts of four stages."""
    return [
        Job(key=f"{requests}:{seed + n}", policy=policy(requests), seed=seed + n, ruled=n < ruled) for n in range(runs)
    ]


def knobs(rows: list[dict[str, Any]]) -> dict[str, Knob]:
    """The rules' thresholds at equal false alarms."""
    seen = [row for row in rows if "rules" in row]
    return {rule: calibrate(seen, rule, LEVEL) for rule in RULES} if seen else {}


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The claim in numbers."""
    timed = [row for row in rows if "seconds" in row]
    found = rates(rows) | {
        "requests_per_s_per_core": sum(row["requests"] for row in timed) / max(sum(r["seconds"] for r in timed), 1e-9),
        "holds": bool(rates(rows)["rollback_upper_95"] <= LEVEL and rates(rows)["hold_upper_95"] <= LEVEL),
    }
    seen = [row for row in rows if "rules" in row]
    if seen:
        found["rules"] = {
            rule: {"rollouts": len(seen), "false_alarms": knob.false_alarms, "thresholds": knob.limits}
            for rule, knob in knobs(rows).items()
        } | {"metrics": list(METRICS)}
    return found
