"""The rules in use today, emulated on the same rows: how far each went towards an alarm, and when.

They see what such products see: served answers of the canaries, request by request, as errors, latency, KPI and loss.
Each rule keeps one number that an alarm compares with a threshold. Here the highest values so far are kept, with the
requests exposed by then, so that every rule can afterwards be given the threshold that costs it the same false alarms
on healthy rollouts (`calibrate`). They get a clean slate at each stage, which spares them the ramp's changing share,
and labels without their delay: both are kinder than the products are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.rollout.traffic import START_US
from pipelines.stats.losses import loss_values
from pipelines.stats.nats import Bools, Floats, Ints

EVERY = 250
"""Requests between two looks of the tests."""
WINDOW = 2000
"""Requests of one Mann-Whitney test."""
METRICS = ("error", "latency", "kpi", "loss")
_LIMIT = {"error": 0.01, "latency": 35.0, "kpi": -4.0, "loss": 0.7}
"""What a failed check is, for the fixed thresholds: means of a minute above these (a KPI is counted negative)."""
_EFFECT = {"error": 0.001, "latency": 0.1, "kpi": 0.2, "loss": 0.015}
"""The alternative of the SPRT: twice the errors, latency +10 %, KPI -4 %, loss +3 %."""


class Served(NamedTuple):
    """n served canary requests in order: minute, stage, whether the challenger served, exposed so far, and values by
    metric, larger is worse, NaN where there is none.
    """

    minute: Ints
    stage: Ints
    challenger: Bools
    exposed: Ints
    values: dict[str, Floats]


def served(tables: dict[str, pa.Table]) -> Served:
    """What the rules see of a made-up rollout, whose request ids count from 0."""
    requests, answers = tables["assignments"], tables["responses"]
    n = requests.num_rows
    arm, stage = (requests[name].combine_chunks() for name in ("arm", "stage"))
    arm, stage = (_codes(column) for column in (arm, stage))
    request, side = answers["request_id"].to_numpy(), _codes(answers["arm"].combine_chunks())
    mine = np.flatnonzero(side == arm[request])[::-1]
    failed, latency, score = np.ones(n), np.full(n, np.nan), np.full(n, np.nan)
    failed[request[mine]] = _codes(answers["status"].combine_chunks())[mine]
    latency[request[mine]] = np.log(answers["latency_ms"].to_numpy()[mine])
    score[request[mine]] = answers["score"].to_numpy()[mine]
    truth, kpi = np.full(n, np.nan), np.full(n, np.nan)
    truth[tables["labels"]["request_id"].to_numpy()] = tables["labels"]["label"].to_numpy()
    kpi[tables["kpi"]["request_id"].to_numpy()] = -tables["kpi"]["value"].to_numpy()
    drawn = arm < 2
    loss = loss_values("log", score, truth, clip=0.01, cap=None)
    values = dict(zip(METRICS, (failed, latency, kpi, loss), strict=True))
    minute = (requests["ts"].cast(pa.int64()).to_numpy() - START_US) // 60_000_000
    challenger = arm[drawn] == 1
    return Served(
        minute[drawn], stage[drawn], challenger, np.cumsum(challenger), {k: v[drawn] for k, v in values.items()}
    )


def _codes(column: pa.Array) -> Ints:
    array = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    codes: Ints = array.indices.to_numpy().astype(np.int64)
    return codes


class _Sums(NamedTuple):
    """Per look: requests of each arm, and mean and variance of one metric in each, since the stage began."""

    at: Ints
    n1: Floats
    n0: Floats
    difference: Floats
    variance: Floats


def _looked(seen: Served, value: Floats) -> _Sums:
    at, columns = [], []
    for stage in np.unique(seen.stage):
        rows = np.flatnonzero(seen.stage == stage)
        known = ~np.isnan(value[rows])
        x = np.where(known, value[rows], 0.0)
        looks = np.arange(EVERY - 1, len(rows), EVERY)
        parts = []
        for side in (seen.challenger[rows] & known, ~seen.challenger[rows] & known):
            parts += [np.cumsum(part)[looks] for part in (side, x * side, x * x * side)]
        at.append(rows[looks])
        columns.append(np.stack(parts))
    n1, s1, q1, n0, s0, q0 = np.concatenate(columns, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        m1, m0 = s1 / n1, s0 / n0
        # Half a request's worth of variance keeps rare events from having none.
        pooled = (q1 + q0) / (n1 + n0) - ((s1 + s0) / (n1 + n0)) ** 2 + 0.25 / (n1 + n0)
        variance = pooled * (1 / n1 + 1 / n0)
    enough = (n1 >= 30) & (n0 >= 30)
    return _Sums(np.concatenate(at)[enough], n1[enough], n0[enough], (m1 - m0)[enough], variance[enough])


def z_test(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """A z-test of the difference of means, looked at every 250 requests."""
    sums = _looked(seen, seen.values[metric])
    return sums.at, sums.difference / np.sqrt(sums.variance)


def asymptotic_sequence(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """Asymptotic confidence sequence (Waudby-Smith et al. 2021), as -log of the level at which it leaves zero out;
    tightest at 500 requests of the challenger.
    """
    sums = _looked(seen, seen.values[metric])
    z = np.maximum(sums.difference / np.sqrt(sums.variance), 0.0)
    information = sums.n1 / 500.0
    return sums.at, 0.5 * z**2 * information / (information + 1.0) - 0.5 * np.log1p(information)


def sprt(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """Wald's sequential probability ratio against the declared harm, normal with the pooled variance."""
    sums, effect = _looked(seen, seen.values[metric]), _EFFECT[metric]
    return sums.at, (effect * sums.difference - 0.5 * effect**2) / sums.variance


def mann_whitney(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """A Mann-Whitney test in each window of 2,000 requests, as its z (Kayenta style)."""
    at, found = [], []
    for begin in range(0, len(seen.minute) - WINDOW + 1, WINDOW):
        rows = np.arange(begin, begin + WINDOW)
        rows = rows[~np.isnan(seen.values[metric][rows])]
        value, one = seen.values[metric][rows], seen.challenger[rows]
        n1, n0 = int(one.sum()), int((~one).sum())
        if min(n1, n0) < 30:
            continue
        level, counts = np.unique(value, return_counts=True, return_inverse=True)[1:]
        ranks = (np.cumsum(counts) - 0.5 * (counts - 1))[level]
        n = n1 + n0
        ties = float((counts.astype(float) ** 3 - counts).sum()) / (n * (n - 1.0))
        spread = np.sqrt(n1 * n0 / 12.0 * (n + 1.0 - ties))
        at.append(begin + WINDOW - 1)
        found.append((ranks[one].sum() - n1 * (n + 1) / 2.0) / spread if spread else 0.0)
    return np.array(at, dtype=np.int64), np.array(found)


def _minutes(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """The challenger's mean in each minute in which it served, at the minute's end."""
    known = seen.challenger & ~np.isnan(seen.values[metric])
    minute = seen.minute - seen.minute.min()
    count = np.bincount(minute[known], minlength=int(minute.max()) + 1)
    total = np.bincount(minute[known], seen.values[metric][known], minlength=len(count))
    ends = np.searchsorted(minute, np.arange(len(count)), side="right") - 1
    used = count > 0
    return ends[used], total[used] / count[used]


def threshold(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """The worst minute of the challenger against a fixed threshold (Argo style: success rate and the like)."""
    return _minutes(seen, metric)


def failed_checks(seen: Served, metric: str) -> tuple[Ints, Floats]:
    """How many minutes have failed a fixed threshold (Flagger style)."""
    at, mean = _minutes(seen, metric)
    limit = np.log(_LIMIT[metric]) if metric == "latency" else _LIMIT[metric]
    return at, np.cumsum(mean > limit).astype(float)


RULES: dict[str, Callable[[Served, str], tuple[Ints, Floats]]] = {
    "threshold, worst minute": threshold,
    "failed checks": failed_checks,
    "Mann-Whitney, windows of 2,000": mann_whitney,
    "asymptotic confidence sequence": asymptotic_sequence,
    "z-test, every 250 requests": z_test,
    "SPRT": sprt,
}


def paths(tables: dict[str, pa.Table]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By rule and metric: (exposed, value) wherever the rule's number was higher than ever before."""
    seen = served(tables)
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for name, rule in RULES.items():
        for metric in METRICS:
            at, value = rule(seen, metric)
            value = np.nan_to_num(value, nan=-np.inf)
            best = np.maximum.accumulate(value) if len(value) else value
            fresh = np.flatnonzero(np.r_[True, best[1:] > best[:-1]]) if len(value) else np.zeros(0, dtype=np.int64)
            fresh = fresh[np.isfinite(best[fresh])]
            records = zip(seen.exposed[at[fresh]].tolist(), best[fresh].round(4).tolist(), strict=True)
            found.setdefault(name, {})[metric] = list(records)
    return found


class Knob(NamedTuple):
    """A rule's thresholds by metric, and the share of healthy rollouts it stops with them."""

    limits: dict[str, float]
    false_alarms: float


def calibrate(healthy: list[dict[str, Any]], rule: str, level: float) -> Knob:
    """The smallest thresholds, equally strict in every metric, that stop at most `level` of the healthy rollouts."""
    highest = {
        metric: np.array([max((v for _, v in row["rules"][rule][metric]), default=-np.inf) for row in healthy])
        for metric in METRICS
    }
    allowed = int(level * len(healthy))
    # Each metric's ranks make the metrics comparable: one rank is the knob of all.
    ranks = np.stack([np.sort(highest[metric])[::-1] for metric in METRICS])
    best = Knob({metric: float(ranks[k][0]) for k, metric in enumerate(METRICS)}, 0.0)
    for place in range(len(healthy)):
        limits = {metric: float(ranks[k][place]) for k, metric in enumerate(METRICS)}
        stopped = np.any([highest[metric] > limits[metric] for metric in METRICS], axis=0)
        if int(stopped.sum()) > allowed:
            break
        best = Knob(limits, float(stopped.mean()))
    return best


def alarm(row: dict[str, Any], rule: str, knob: Knob) -> int | None:
    """Requests exposed when the rule would have stopped the rollout; None when it would not have."""
    found = [
        exposed for metric, path in row["rules"][rule].items() for exposed, value in path if value > knob.limits[metric]
    ]
    return min(found, default=None)
