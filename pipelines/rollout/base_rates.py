"""Base rates of a policy's metrics, measured on the champion's own traffic before a rollout begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import msgspec
import numpy as np

from pipelines.contracts.errors import DataError
from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.rates import BaseRates, Rates
from pipelines.stats import tables
from pipelines.stats.evidence import Evidence
from pipelines.stats.losses import RANK, loss_values
from pipelines.stats.nats import MOMENT, Floats

LEAST = 100
"""Answers and values below which a rate says nothing."""


class Answers(NamedTuple):
    """n answers of one release in order of event time: time in microseconds, whether it was an error, score, latency in
    milliseconds, label and KPI (where there are several, the policy's first); NaN where there is none. `unit`, `slices`
    (the values of one request by name), when label and KPI arrived, and the values of every KPI by its metric are empty
    where nobody has asked for them.
    """

    event_us: np.ndarray[tuple[int], np.dtype[np.int64]]
    failed: np.ndarray[tuple[int], np.dtype[np.bool_]]
    score: Floats
    latency_ms: Floats
    label: Floats
    kpi: Floats
    unit: Sequence[str] = ()
    slices: Sequence[Mapping[str, str]] = ()
    label_us: Sequence[int] = ()
    kpi_us: Sequence[int] = ()
    by_kpi: Mapping[str, Floats] = {}


def measured(policy: Policy, answers: Answers, backtest: Evidence | None = None) -> Rates:
    """The rates that `policy` can be planned with; metrics of which too little is known are left out.

    The spread of paired differences comes from the backtest's evidence, where there is one. Rates of events are
    `(k + 0.5) / (n + 1)`, so that an event never seen is rare and not impossible. A label counts as missing only when
    it is older than the policy's label maturity. Raises DataError below `LEAST` answers.
    """
    size = len(answers.event_us)
    hours = float(answers.event_us[-1] - answers.event_us[0]) / 3.6e9 if size > 1 else 0.0
    if size < LEAST or hours <= 0.0:
        raise DataError("base rates", got=f"{size} answers of the champion", expected=f"at least {LEAST}")
    mature = answers.event_us <= answers.event_us[-1] - round(policy.label_maturity_s * 1e6)
    known = ~np.isnan(answers.label[mature]) if np.isfinite(answers.label).any() else ~np.isnan(answers.kpi[mature])
    found = {metric.name: base for metric in policy.metrics if (base := _base(policy, metric, answers, backtest))}
    return Rates(
        requests_per_hour=size / hours,
        labelled=float(known.mean()) if known.any() else 1.0,
        units=len(set(answers.unit)) if policy.unit == "unit" and len(answers.unit) else None,
        slices=slice_shares(answers.slices),
        metrics=found,
    )


def evaluated(policy: Policy, answers: Answers, other: Floats, labelled: float, seconds: float) -> Rates:
    """The rates that an evaluation over test rows gives: losses of `answers`, paired with the scores of an `other`
    release on the same rows (NaN where it has none). Events, latencies and KPIs show in live traffic alone. `labelled`
    is the share of requests with a label; the rows lie in `seconds` of event time.
    """
    found: dict[str, BaseRates] = {}
    for metric in policy.metrics:
        if metric.kind == "paired_loss" and (base := _base(policy, metric, answers, None)) is not None:
            found[metric.name] = msgspec.structs.replace(base, paired_sd=_spread(metric, answers, other))
    hours = max(seconds, 1.0) / 3600.0
    return Rates(
        requests_per_hour=len(answers.label) / labelled / hours,
        labelled=labelled,
        slices=slice_shares(answers.slices),
        metrics=found,
    )


def _spread(metric: Metric, answers: Answers, other: Floats) -> float | None:
    """Standard deviation of two releases' losses on the same rows."""
    both = np.isfinite(answers.score) & np.isfinite(other) & np.isfinite(answers.label)
    if metric.loss == RANK or int(both.sum()) < LEAST:
        return None
    one, zero = (
        loss_values(metric.loss, score[both], answers.label[both], clip=metric.clip, cap=metric.cap, q=metric.q)
        for score in (answers.score, other)
    )
    return float((one - zero).std()) or None


def slice_shares(slices: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The share of requests in each slice, those of every slicing together."""
    counted = Counter(value for row in slices for value in row.values())
    return {name: count / len(slices) for name, count in sorted(counted.items())}


def _base(policy: Policy, metric: Metric, answers: Answers, backtest: Evidence | None) -> BaseRates | None:
    if metric.kind == "event":
        failed = answers.failed
        events = failed if metric.event == "error" else ~failed & ~_valid(policy, answers.score)
        return BaseRates(rate=(int(events.sum()) + 0.5) / (len(events) + 1))
    if metric.kind == "quantile":
        latency = answers.latency_ms[answers.latency_ms > 0.0]
        return BaseRates(sigma=_sigma(metric, latency)) if len(latency) >= LEAST else None
    if metric.loss == RANK:
        return _ranking(answers, _paired_sd(metric, backtest))
    if metric.kind == "mean":
        values = answers.by_kpi.get(metric.name, answers.kpi[:0])
        values = values[np.isfinite(values)]
    else:
        values = answers.score[np.isfinite(answers.score)]
        if metric.kind == "paired_loss":
            both = np.isfinite(answers.score) & np.isfinite(answers.label)
            values = loss_values(
                metric.loss, answers.score[both], answers.label[both], clip=metric.clip, cap=metric.cap, q=metric.q
            )
    if len(values) < LEAST:
        return None
    spread = _paired_sd(metric, backtest) if metric.paired else None
    return BaseRates(mean=float(values.mean()), sd=float(values.std()), paired_sd=spread)


def _sigma(metric: Metric, latency: Floats) -> float:
    """The spread of the log-normal whose share above the metric's quantile grows as these latencies' would, were they
    longer by the metric's own margin: tails are heavier than bodies.
    """
    factor = metric.harm_ratio or 1.0 + (metric.promote_margin_rel or 0.1)
    beyond = float((latency * factor > np.quantile(latency, metric.q or 0.5)).mean())
    reached = NormalDist().inv_cdf(min(max(1.0 - beyond, 1e-4), 1.0 - 1e-4))
    gap = NormalDist().inv_cdf(metric.q or 0.5) - reached
    return min(max(float(np.log(factor)) / gap, 0.05), 5.0) if gap > 0.0 else float(np.log(latency).std() + 0.05)


def _ranking(answers: Answers, spread: float | None) -> BaseRates | None:
    """The share of positive labels, and of (positive, negative) pairs ranked ill: one minus the area under the ROC."""
    both = np.isfinite(answers.score) & np.isfinite(answers.label)
    level, label = np.unique(answers.score[both], return_inverse=True)[1], answers.label[both] > 0.5
    ones, zeros = np.bincount(level, label), np.bincount(level, ~label)
    pairs = float(ones.sum() * zeros.sum())
    if min(ones.sum(), zeros.sum()) < LEAST:
        return None
    ill = float((ones * (zeros.sum() - zeros.cumsum() + 0.5 * zeros)).sum()) / pairs
    return BaseRates(rate=float(label.mean()), mean=ill, sd=float(np.sqrt(ill * (1.0 - ill))), paired_sd=spread)


def _valid(policy: Policy, score: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    low, high = policy.score_range or (-np.inf, np.inf)
    valid = np.isfinite(score)
    valid[valid] &= (score[valid] >= low) & (score[valid] <= high)
    return valid


def _paired_sd(metric: Metric, backtest: Evidence | None) -> float | None:
    """Standard deviation of the paired differences of a backtest."""
    held = backtest.cells.items() if backtest is not None else ()
    cells = [vector for (_, name, part), vector in held if name == metric.name and not part]
    n = sum(int(vector[tables.N]) for vector in cells)
    if n < LEAST:
        return None
    total = sum(int(vector[tables.S]) for vector in cells) / MOMENT
    squares = sum(int(vector[tables.V]) for vector in cells) / MOMENT
    return float(np.sqrt(max(squares / n - (total / n) ** 2, 0.0)))
