"""How large a difference is: the levels of both arms, the effect with its anytime-valid interval, practical harm."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.rollout.policy import Metric, Policy, Stage
from pipelines.stats.bounds import interval
from pipelines.stats.losses import loss_range
from pipelines.stats.nats import MOMENT, Ints

_ALPHA_INTERVAL = 0.05


class Levels(NamedTuple):
    """Outcome levels of both arms in one scope of stages, compared within each stage and then pooled."""

    n: int
    champion: float
    challenger: float
    difference: float
    ratio: float


def levels_of(rows: Ints) -> Levels:
    """Levels from the moments of some stages: `rows` (k, WIDTH). Weights are those of Mantel and Haenszel."""
    mass = over = under = 0.0
    n = total1 = total0 = sum1 = sum0 = 0
    # Plain numbers: there are as few rows as stages, and a live look asks some dozens of times.
    for settled, n1, n0, y1, y0 in rows[:, :5].tolist():
        n, total1, total0, sum1, sum0 = n + settled, total1 + n1, total0 + n0, sum1 + y1, sum0 + y0
        if n1 and n0:
            weight = n1 * n0 / (n1 + n0)
            mass += weight
            over += weight * (y1 / MOMENT / n1)
            under += weight * (y0 / MOMENT / n0)
    champion = under / mass if mass else sum0 / MOMENT / max(total0, 1)
    challenger = over / mass if mass else sum1 / MOMENT / max(total1, 1)
    # Half an event on either side keeps the ratio of rare events finite.
    return Levels(n, champion, challenger, challenger - champion, (over + 0.25) / (under + 0.25))


def _harm_size(metric: Metric, levels: Levels) -> float:
    """How much worse the challenger is, in the metric's unit; above zero is worse."""
    return -levels.difference if metric.kind == "mean" and metric.better == "higher" else levels.difference


def harmful(metric: Metric, levels: Levels) -> bool:
    """The second key: is the estimated harm above the practical margin?"""
    size = _harm_size(metric, levels)
    if metric.kind == "event":
        return size > 0.0 and levels.ratio >= (metric.harm_ratio or 1.0)
    if metric.kind in ("paired_mean", "paired_abs"):
        allowed = (metric.tolerance_abs or 0.0) + (metric.tolerance_rel or 0.0) * abs(levels.champion)
        return metric.kind == "paired_abs" or abs(size) >= allowed
    return size > 0.0 and size >= (metric.harm_abs or 0.0) + (metric.harm_rel or 0.0) * abs(levels.champion)


def _bounds(policy: Policy, metric: Metric | None, stage: Stage) -> tuple[float, float] | None:
    """(low, high) such that one effect lies in [-low, high]; None when nothing bounds it."""
    drawn = stage.randomised and (metric is None or not metric.paired)
    share = stage.share or 0.5
    if metric is None or metric.kind in ("event", "quantile"):
        return (1.0 / (1.0 - share), 1.0 / share) if drawn else (1.0, 1.0)
    if metric.kind == "mean":
        low, high = metric.range or (0.0, 1.0)
        reach = (high - low) / min(share, 1.0 - share)
        return (reach, reach)
    if metric.kind == "paired_loss":
        least, most = loss_range(metric.loss, clip=metric.clip, cap=metric.cap)
        return (most - least, most - least)
    if policy.score_range is None:
        return None
    width = policy.score_range[1] - policy.score_range[0]
    return (width, width)


class Estimate(NamedTuple):
    """Challenger minus champion in the metric's unit with its interval at 95 %, None without data or bounds."""

    estimate: float | None
    lower: float | None
    upper: float | None
    levels: Levels


def estimate_of(policy: Policy, metric: Metric | None, whole: Ints) -> Estimate:
    """Effect and interval: pairs over all stages, drawn arms in the latest stage that has data. `whole` (K, WIDTH)."""
    filled = [k for k in range(len(whole)) if whole[k, 0] > 0]
    if not filled:
        return Estimate(None, None, None, levels_of(whole))
    scope = filled if metric is not None and metric.paired else filled[-1:]
    rows = whole[scope]
    levels = levels_of(rows)
    bounds = _bounds(policy, metric, policy.stages[scope[-1]])
    total, squares = float(rows[:, 5].sum()) / MOMENT, float(rows[:, 6].sum()) / MOMENT
    direct = metric is None or metric.paired
    mean = total / levels.n if direct else levels.difference
    if bounds is None:
        return Estimate(mean, None, None, levels)
    lower, upper = interval(levels.n, total, squares, *bounds, _ALPHA_INTERVAL)
    return Estimate(mean, lower, upper, levels)
