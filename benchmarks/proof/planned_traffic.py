"""Traffic of one metric, healthy or with harm of a known size: what a plan is held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.rates import BaseRates
from pipelines.stats.losses import RANK, loss_values

START_US = 1_767_225_600_000_000
Arrays = dict[str, np.ndarray[Any, Any]]


def outcomes(
    metric: Metric, n: int, rng: np.random.Generator, *, rate: float = 0.01, harm: float = 1.0, worse: float = 0.0
) -> Arrays:
    """(n, 2) scores, errors and latencies by arm (0 champion), labels and (n, 2) KPIs of n requests.

    `harm` multiplies the challenger's event rate or latency; `worse` shifts its scores (in logits, where the label is a
    class) or lowers its KPI.
    """
    latency = 20.0 * np.exp(rng.normal(0.0, 0.4, (n, 2)))
    if metric.kind == "quantile":
        latency[:, 1] *= harm
    chance = np.array([rate, rate * harm]) if metric.kind == "event" else np.zeros(2)
    event = rng.random((n, 2)) < chance
    truth = rng.normal(0.0, 1.2, n)
    if metric.kind == "paired_loss" and metric.loss in ("squared", "absolute", "pinball"):
        label = truth + rng.normal(0.0, 1.0, n)
        score = truth[:, None] + rng.normal(0.0, 0.5, (n, 2))
        score[:, 1] += worse
    else:
        label = (rng.random(n) < 1.0 / (1.0 + np.exp(-truth))).astype(float)
        logit = truth[:, None] + rng.normal(0.0, 0.5, (n, 2))
        # A shift leaves the order of scores as it was, so the rank loss is harmed by noise.
        logit[:, 1] += worse * (rng.normal(0.0, 1.0, n) if metric.loss == RANK else np.ones(n))
        score = 1.0 / (1.0 + np.exp(-logit))
    if metric.kind == "event" and metric.event == "invalid":
        score[event] = np.nan
        event = np.zeros((n, 2), dtype=bool)
    kpi = np.clip(rng.normal(5.0, 2.0, (n, 2)) - np.array([0.0, worse]), 0.0, 10.0)
    return {"latency": latency, "error": event, "score": score, "label": label, "kpi": kpi}


def base_rates(metric: Metric, *, rate: float, worse: float) -> BaseRates:
    """What a champion's log would say of this traffic, and the harm's size in the metric's unit."""
    n = 60_000
    if metric.kind in ("event", "quantile"):
        return BaseRates(rate=rate, sigma=0.4)
    made = outcomes(metric, n, np.random.default_rng(1))
    hurt = outcomes(metric, n, np.random.default_rng(1), worse=worse)
    if metric.kind == "mean":
        kpi = made["kpi"][:, 0]
        return BaseRates(mean=kpi.mean(), sd=kpi.std(), effect=float(kpi.mean() - hurt["kpi"][:, 1].mean()) or None)
    zero, one = (losses(metric, made, arm) for arm in (0, 1))
    effect = float(losses(metric, hurt, 1).mean() - zero.mean())
    return BaseRates(
        rate=float(made["label"].mean()) if metric.loss == RANK else None, mean=float(zero.mean()),
        sd=float(zero.std()), paired_sd=float((one - zero).std()), effect=effect if worse else None,
    )  # fmt: skip


def losses(metric: Metric, made: Arrays, arm: int) -> np.ndarray[Any, Any]:
    """Losses of one arm; of a rank loss, of each positive paired with the negative at its place."""
    score = made["score"][:, arm]
    if metric.loss == RANK:
        up, down = score[made["label"] > 0.5], score[made["label"] <= 0.5]
        size = min(len(up), len(down))
        return np.asarray(0.5 - 0.5 * np.sign(up[:size] - down[:size]))
    return loss_values(metric.loss, score, made["label"], clip=metric.clip, cap=metric.cap, q=metric.q)


def tables(policy: Policy, made: Arrays, rng: np.random.Generator, *, per_s: float, units: int) -> dict[str, pa.Table]:
    """The four tables of the first stage of `policy`, `per_s` requests a second, of `units` units (0: each its own)."""
    stage, n = policy.stages[0], len(made["label"])
    ts = START_US + (np.arange(n) * 1e6 / per_s).astype(np.int64)
    unit = rng.integers(0, units, n) if units else np.arange(n)
    place = rng.random(units)[unit] if units else rng.random(n)
    drawn = stage.randomised
    mine = place < (stage.share or 0.0) if drawn else np.zeros(n, dtype=bool)
    shown = np.array(["champion", "challenger"])
    row, arm = np.nonzero(np.stack([~mine, mine], axis=1) if drawn else np.ones((n, 2), dtype=bool))
    request = np.arange(n)
    stamp = pa.timestamp("us", "UTC")
    return {
        "assignments": pa.table(
            {
                "seq": request, "request_id": request, "ts": pa.array(ts, stamp),
                "stage": np.full(n, stage.name), "arm": shown[mine.astype(int)] if drawn else np.full(n, "both"),
                "share": pa.array(np.full(n, stage.share if drawn else np.nan), from_pandas=True), "unit_id": unit,
                **{name: rng.choice(["a", "b", "c", "d"], n) for name in policy.slices},
            }
        ),
        "responses": pa.table(
            {
                "request_id": row, "arm": shown[arm], "ts": pa.array(ts[row] + 1, stamp),
                "latency_ms": made["latency"][row, arm].astype(np.float32),
                "status": np.where(made["error"][row, arm], "error", "ok"),
                "score": made["score"][row, arm],
            }
        ),
        "labels": pa.table({"request_id": request, "ts": pa.array(ts + 2, stamp), "label": made["label"]}),
        "kpi": pa.table(
            {
                "request_id": request, "ts": pa.array(ts + 2, stamp),
                "value": made["kpi"][request, mine.astype(int)],
            }
        ),
    }  # fmt: skip
