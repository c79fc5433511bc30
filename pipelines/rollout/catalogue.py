"""Healthy traps and faults by name, and what became of simulated rollouts: for `slipway gate simulate` and the
benchmark.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pipelines.rollout.simulator import Fault
from pipelines.rollout.traffic import Traffic

TRAPS: dict[str, Traffic] = {
    "cold start": Traffic(cold_start=150),
    "shared outage": Traffic(outage=0.3),
    "latency spike": Traffic(spike=5.0),
    "early positive labels": Traffic(early_positives=True),
    "noise local to an arm": Traffic(arm_noise=0.15),
    "sticky units, some sick": Traffic(units=300_000, sick_units=0.002),
    "better model": Traffic(challenger_noise=0.1),
    "drift in both arms": Traffic(drift=0.5),
    "both arms score all along": Traffic(shadowing=True),
    "few labels, late": Traffic(labelled=0.5, label_delay_s=3000.0),
}
"""Healthy challengers in traffic that fools simpler judges."""
FAULTS: dict[str, Fault] = {
    "errors .1 -> .5 %": Fault(error_rate=0.004),
    "errors .1 -> 1 %": Fault(error_rate=0.009),
    "errors .1 -> 5 %": Fault(error_rate=0.049),
    "errors .1 -> .5 %, only served": Fault(error_rate=0.004, only_served=True),
    "errors .1 -> 1 %, only served": Fault(error_rate=0.009, only_served=True),
    "errors .1 -> 5 %, only served": Fault(error_rate=0.049, only_served=True),
    "errors .1 -> 5 %, one slice, only served": Fault(error_rate=0.049, only_served=True, slice="b"),
    "errors growing to 5 %, only served": Fault(error_rate=0.049, only_served=True, grows=True),
    "errors of 20 % in bursts, only served": Fault(error_rate=0.199, only_served=True, bursts=2000),
    "errors .1 -> 1 %, begins in the last stage": Fault(error_rate=0.009, begins=60_000),
    "every second request fails": Fault(error_rate=0.5, only_served=True),
    "invalid scores .02 -> 1 %": Fault(invalid_rate=0.0098),
    "invalid scores .02 -> 1 %, only served": Fault(invalid_rate=0.0098, only_served=True),
    "invalid scores in one slice": Fault(invalid_rate=0.02, slice="c"),
    "p50 +10 %": Fault(latency_factor=1.1),
    "p50 +20 %": Fault(latency_factor=1.2),
    "p50 +50 %": Fault(latency_factor=1.5),
    "p50 +30 %, begins in the second canary": Fault(latency_factor=1.3, begins=40_000),
    "latency growing to three times": Fault(latency_factor=3.0, grows=True),
    "tail of 2 % five times slower": Fault(tail_factor=5.0),
    "tail of 2 % twenty times slower": Fault(tail_factor=20.0),
    "scores shifted by half a logit": Fault(logit_shift=0.5),
    "scores shifted by half a logit down": Fault(logit_shift=-0.5),
    "scores shifted by one logit": Fault(logit_shift=1.0),
    "noise of one logit": Fault(logit_noise=1.0),
    "noise of two logits in one slice": Fault(logit_noise=2.0, slice="a"),
    "noise of one logit, begins in the first canary": Fault(logit_noise=1.0, begins=20_000),
    "quality lost little by little": Fault(logit_noise=2.0, grows=True),
    "every score the same": Fault(constant=True),
    "kpi -8 %": Fault(kpi_factor=0.92),
    "kpi -20 %": Fault(kpi_factor=0.8),
    "kpi -20 %, begins in the last stage": Fault(kpi_factor=0.8, begins=60_000),
    "kpi -40 % in one slice": Fault(kpi_factor=0.6, slice="d"),
    "share 20 % too large": Fault(share_factor=1.2),
    "share 20 % too small": Fault(share_factor=0.8),
    "1 % of responses lost": Fault(lost=0.01),
    "1 % of responses lost, only served": Fault(lost=0.01, only_served=True),
    "1 % of responses doubled": Fault(doubled=0.01),
    "slow, failing and wrong at once": Fault(error_rate=0.004, latency_factor=1.1, logit_noise=0.5, kpi_factor=0.95),
}
"""What the gates of the table's policy must stop. Stages of 20,000 requests."""
SHADOWED = ("noise of one logit, begins in the first canary", "quality lost little by little")
"""Faults that show on pairs alone, and after the shadow stage: stopped where both arms go on scoring."""
INFEASIBLE: dict[str, tuple[Fault, str]] = {
    "errors .1 -> .2 %": (Fault(error_rate=0.001), "110,000 requests by the plan; the margin of .3 % allows it"),
    "p50 +3 %": (Fault(latency_factor=1.03), "below the practical margin of 5 %"),
    "kpi -1 %": (Fault(kpi_factor=0.99), "92,000 exposed requests; below the practical margin of 2 %"),
    "noise of .15 logits": (Fault(logit_noise=0.15), "costs .2 % of the loss; the practical margin is 1 %"),
    "errors .1 -> 1 %, one slice of four": (
        Fault(error_rate=0.009, slice="b", only_served=True),
        "over all traffic .33 %: mostly found in its slice, some only at the end; `per_slice` keeps promotion out",
    ),
    "errors .1 -> 5 % in the last 500 requests": (
        Fault(error_rate=0.049, begins=79_500, only_served=True),
        "promotion falls before enough has been seen; the bake is there for it",
    ),
}
"""What this policy cannot promise to stop in these stages, and why."""


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


def traffic_of(fault: str) -> Traffic:
    """The traffic in which a fault of the catalogue is played."""
    return Traffic(shadowing=fault in SHADOWED)
