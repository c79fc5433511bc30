"""Made-up traffic with a model's base rates, for a model that has logged none."""

from __future__ import annotations

import numpy as np

from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.rates import BaseRates, Rates
from pipelines.rollout.resampling import perturbed
from pipelines.rollout.traffic import Traffic, World, draw_world
from pipelines.stats.losses import OF_PROBABILITIES, RANK

_USUAL_SD = 0.3
"""What two releases differ by, of a regression's own error, where nobody has compared any."""


def traffic_of(policy: Policy, rates: Rates) -> Traffic:
    """The generator's settings by the rates that are known."""
    known: dict[str, float | int | tuple[str, ...]] = {
        "requests_per_s": rates.requests_per_hour / 3600.0,
        "labelled": rates.labelled,
        "label_delay_s": policy.label_maturity_s / 4.0,
        "units": rates.units or 0 if policy.unit == "unit" else 0,
    }
    if len(rates.slices) > 1:
        known["slices"] = tuple(rates.slices)
    for metric in policy.metrics:
        base = rates.of(metric.name)
        if metric.kind == "event" and base.rate is not None:
            known["error_rate" if metric.event == "error" else "invalid_rate"] = base.rate
        elif metric.kind == "quantile":
            known["latency_spread"] = base.sigma
        elif metric.kind == "mean" and base.mean is not None:
            known |= {"kpi_mean": base.mean, "kpi_sd": base.sd or abs(base.mean)}
        elif metric.kind == "paired_loss" and metric.loss == RANK and base.rate is not None:
            known["positive_rate"] = base.rate
    return Traffic(**known)  # type: ignore[arg-type]  # each value has its setting's type


def made(policy: Policy, rates: Rates, sizes: list[int], rng: np.random.Generator) -> World:
    """A healthy world at these rates; labels are numbers where the policy's loss is one of numbers."""
    world = draw_world(sizes, traffic_of(policy, rates), rng)
    metric = next(
        (m for m in policy.metrics if m.kind == "paired_loss" and m.loss not in (*OF_PROBABILITIES, RANK)), None
    )
    if metric is None:
        return world
    low, high = policy.score_range or (-np.inf, np.inf)
    middle = (low + high) / 2.0 if np.isfinite(low + high) else 0.0
    error = _error_sd(metric, rates.of(metric.name))
    n = len(world.ts)
    score = perturbed(np.full(n, middle), _USUAL_SD * error, rng, probabilities=False)
    label = np.where(np.isnan(world.label), np.nan, middle + rng.normal(0.0, error, n))
    return world._replace(score=np.clip(score, low, high), label=label)


def _error_sd(metric: Metric, base: BaseRates) -> float:
    """The standard deviation of a normal error whose mean loss is the known one."""
    mean = base.mean or 1.0
    if metric.loss == "squared":
        return float(np.sqrt(mean))
    return float(mean * np.sqrt(np.pi / 2.0)) * (2.0 if metric.loss == "pinball" else 1.0)
