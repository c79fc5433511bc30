"""Claim: a challenger that is worse by exactly a declared margin is promoted in at most 5 % of rollouts.

Nothing can roll it back here, and nothing but the metric's own proof stands between it and promotion.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.proof.policies import proof_alone
from benchmarks.proof.runs import Job
from pipelines.rollout.catalogue import rates
from pipelines.rollout.simulator import Fault
from pipelines.rollout.traffic import Traffic, draw_world
from pipelines.stats.losses import loss_values
from pipelines.stats.nats import Floats

LEVEL = 0.05
_LOSS: dict[str, Any] = {"kind": "paired_loss", "harm_rel": 0.01, "promote_margin_rel": 0.03}
METRICS: dict[str, dict[str, Any]] = {
    "errors, .3 % more": {"name": "error_rate", "kind": "event", "promote_margin_abs": 0.003},
    "p50, 10 % slower": {"name": "latency_p50", "kind": "quantile", "q": 0.5, "promote_margin_rel": 0.1},
    "p99, 20 % slower": {"name": "latency_p99", "kind": "quantile", "q": 0.99, "promote_margin_rel": 0.2},
    "log loss, 3 % more": {"name": "logloss", **_LOSS, "clip": 0.01},
    "Brier loss, 3 % more": {"name": "brier", **_LOSS, "loss": "brier"},
    "squared loss, 3 % more": {"name": "squared", **_LOSS, "loss": "squared", "cap": 1.0},
    "absolute loss, 2 % more": {"name": "absolute", **_LOSS, "loss": "absolute", "cap": 1.0,
                                "promote_margin_rel": 0.02},
    "pinball loss at .5, 2 % more": {"name": "pinball", **_LOSS, "loss": "pinball", "cap": 1.0, "q": 0.5,
                                     "promote_margin_rel": 0.02},
    "rank loss, .02 more": {"name": "rank", "kind": "paired_loss", "loss": "rank", "promote_margin_abs": 0.02},
    "KPI, 5 % less": {"name": "kpi", "kind": "mean", "range": [0, 10], "better": "higher", "promote_margin_rel": 0.05},
}  # fmt: skip


def jobs(runs: int, requests: int, seed: int) -> list[Job]:
    """`runs` rollouts at each margin."""
    found = []
    for place, (name, metric) in enumerate(METRICS.items()):
        body, fault = proof_alone(requests, metric), at_margin(name)
        found += [
            Job(key=f"{name}:{requests}:{n}", policy=body, seed=seed + 100_000 * (place + 1) + n, fault=fault)
            for n in range(runs)
        ]
    return found


@cache
def at_margin(name: str) -> Fault:
    """The fault that costs exactly the margin."""
    metric = METRICS[name]
    if metric["kind"] == "event":
        # On top of the rate that both arms have anyway.
        return Fault(error_rate=metric["promote_margin_abs"] / (1.0 - Traffic().error_rate))
    if metric["kind"] == "quantile":
        return Fault(latency_factor=1.0 + metric["promote_margin_rel"])
    if metric["kind"] == "mean":
        return Fault(kpi_factor=1.0 - metric["promote_margin_rel"])
    return Fault(logit_noise=_noise(metric))


def _noise(metric: dict[str, Any], size: int = 400_000) -> float:
    """Noise on the challenger's logits that costs the margin, by bisection on one large sample."""
    world = draw_world([size], Traffic(labelled=1.0), np.random.default_rng(1))
    noise = np.random.default_rng(2).standard_normal(size)
    cost = _rank_cost if metric["loss" if "loss" in metric else "kind"] == "rank" else _loss_of(metric)
    logit = np.log(world.score / (1.0 - world.score))

    def level(spread: float) -> float:
        # Both arms' healthy scores are alike, so the mean of both is the base that counts.
        worse = 1.0 / (1.0 + np.exp(-(logit + spread * noise[:, None])))
        return float(np.mean([cost(worse[:, arm], world.label) for arm in (0, 1)]))

    base = level(0.0)
    aim = base * (1.0 + metric.get("promote_margin_rel", 0.0)) + metric.get("promote_margin_abs", 0.0)
    low, high = 0.0, 3.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if level(middle) < aim else (low, middle)
    return high


def _loss_of(metric: dict[str, Any]) -> Callable[[Floats, Floats], float]:
    def cost(score: Floats, label: Floats) -> float:
        kind = metric.get("loss", "log")
        return float(loss_values(kind, score, label, clip=0.01, cap=metric.get("cap"), q=metric.get("q")).mean())

    return cost


def _rank_cost(score: Floats, label: Floats) -> float:
    """One minus the area under the ROC curve."""
    place = np.argsort(np.argsort(score))
    ones = label > 0.5
    n1 = int(ones.sum())
    area = (place[ones].sum() - n1 * (n1 - 1) / 2.0) / (n1 * float(len(label) - n1))
    return 1.0 - float(area)


def told(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The claim in numbers, by margin."""
    found: dict[str, Any] = {}
    for name in METRICS:
        mine = [row | {"verdict": "rollback" if row["verdict"] == "promote" else "kept"} for row in rows
                if row["key"].startswith(f"{name}:")]  # fmt: skip
        if mine:
            share = rates(mine)
            found[name] = {
                "runs": share["runs"], "promoted": share["rollback"], "promoted_upper_95": share["rollback_upper_95"],
                "holds": share["rollback"] <= LEVEL,
            }  # fmt: skip
    return found
