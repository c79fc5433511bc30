"""Healthy traps and faults by name, and what became of simulated rollouts: for `slipway gate simulate` and the
benchmark.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pipelines.rollout.simulator import Fault, Traffic

TRAPS: dict[str, Traffic] = {
    "cold start": Traffic(cold_start=150),
    "shared outage": Traffic(outage=0.3),
    "latency spike": Traffic(spike=5.0),
    "early positive labels": Traffic(early_positives=True),
    "noise local to an arm": Traffic(arm_noise=0.15),
    "sticky units, some sick": Traffic(units=2000, sick_units=0.02),
}
FAULTS: dict[str, Fault] = {
    "errors .1 -> .5 %": Fault(error_rate=0.005),
    "errors .1 -> 1 %": Fault(error_rate=0.01),
    "errors .1 -> 5 %": Fault(error_rate=0.05),
    "errors .1 -> 1 %, only served": Fault(error_rate=0.01, only_served=True),
    "errors .1 -> 5 %, only served": Fault(error_rate=0.05, only_served=True),
    "errors .1 -> 5 %, one slice, only served": Fault(error_rate=0.05, only_served=True, slice="b"),
    "invalid scores .02 -> 1 %": Fault(invalid_rate=0.01),
    "p50 +10 %": Fault(latency_factor=1.1),
    "p50 +50 %": Fault(latency_factor=1.5),
    "tail of 2 % five times slower": Fault(tail_factor=5.0),
    "scores shifted by half a logit": Fault(logit_shift=0.5),
    "scores shifted by one logit": Fault(logit_shift=1.0),
    "noise of one logit": Fault(logit_noise=1.0),
    "kpi -8 %": Fault(kpi_factor=0.92),
    "kpi -20 %": Fault(kpi_factor=0.8),
    "share 20 % too large": Fault(share_factor=1.2),
    "1 % of responses lost": Fault(lost=0.01),
    "1 % of responses doubled": Fault(doubled=0.01),
}


def outcome(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the judge's lines of one rollout amount to."""
    last = lines[-1]
    return {
        "verdict": last["verdict"],
        "metric": last["metric"],
        "exposed": last["exposed"],
        "seq": last["seq"],
        "missing": last["missing"],
        "paused": any(line["verdict"] == "continue" and line["metric"] for line in lines),
    }


def upper_bound(events: int, runs: int, level: float = 0.95) -> float:
    """Clopper-Pearson: the exact one-sided upper bound of a rate."""
    from scipy.stats import beta

    return 1.0 if events >= runs else float(beta.ppf(level, events + 1, runs - events))


def rates(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Verdict shares of some rollouts, with exact upper bounds for the stops."""
    runs = len(found)
    verdicts = Counter(row["verdict"] for row in found)
    stopped = [row for row in found if row["verdict"] in ("rollback", "hold")]
    exposed = [row["exposed"] for row in stopped]
    return {
        "runs": runs,
        "rollback": verdicts["rollback"] / runs,
        "rollback_upper_95": upper_bound(verdicts["rollback"], runs),
        "hold": verdicts["hold"] / runs,
        "hold_upper_95": upper_bound(verdicts["hold"], runs),
        "promote": verdicts["promote"] / runs,
        "paused": sum(row["paused"] for row in found) / runs,
        "by": dict(Counter(row["metric"] for row in stopped)),
        "missing": dict(Counter(name for row in found for name in row["missing"])),
        "exposed_median": float(np.median(exposed)) if exposed else None,
        "exposed_90": float(np.quantile(exposed, 0.9)) if exposed else None,
    }
