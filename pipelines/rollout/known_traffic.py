"""What is known of a model's traffic from several sources, the best of them first, as one set of rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.rates import BaseRates, Rates

ASSUMED_ERRORS = 0.001
"""The error rate of a champion of which nothing is known; proofs of an absolute margin hardly depend on it."""
ASSUMED_SPREAD = 0.5
"""Paired over unpaired standard deviation of a loss, where no two releases have been compared (flights: .25 to .6)."""


class Known(NamedTuple):
    """Rates, where the traffic's size is from, and where each metric's rates are from."""

    rates: Rates
    source: str
    by_metric: dict[str, str]


def combined(policy: Policy, sources: Sequence[tuple[str, Rates]]) -> Known | None:
    """The rates of the first source; what it does not know comes from the next, and at last from an assumption. None
    without a source.
    """
    if not sources:
        return None
    first = sources[0][1]
    metrics: dict[str, BaseRates] = {}
    by_metric: dict[str, str] = {}
    for metric in policy.metrics:
        told = [(name, rates.metrics[metric.name]) for name, rates in sources if metric.name in rates.metrics]
        base = BaseRates()
        origin: list[str] = []
        for name, known in told:
            filled = _filled(base, known)
            if filled != base:
                base, origin = filled, [*origin, name]
        assumed = _assumed(metric, base)
        if assumed != base:
            base, origin = assumed, [*origin, "assumed"]
        if base != BaseRates():
            metrics[metric.name], by_metric[metric.name] = base, " + ".join(origin)
    rates = msgspec.structs.replace(
        first,
        metrics=metrics,
        units=next((rates.units for _, rates in sources if rates.units), None),
        slices=next((rates.slices for _, rates in sources if rates.slices), {}),
    )
    return Known(rates, sources[0][0], by_metric)


def _filled(base: BaseRates, known: BaseRates) -> BaseRates:
    """`base` with what it lacks from `known`."""
    blank = BaseRates()
    changes = {
        name: getattr(known, name)
        for name in BaseRates.__struct_fields__
        if getattr(base, name) == getattr(blank, name) and getattr(known, name) != getattr(blank, name)
    }
    return msgspec.structs.replace(base, **changes)


def _assumed(metric: Metric, base: BaseRates) -> BaseRates:
    if metric.kind == "event" and base.rate is None:
        return msgspec.structs.replace(base, rate=ASSUMED_ERRORS)
    if metric.kind == "paired_loss" and base.paired_sd is None and base.sd is not None:
        return msgspec.structs.replace(base, paired_sd=ASSUMED_SPREAD * base.sd)
    return base
