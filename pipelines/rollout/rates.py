"""What a model's traffic is like: the numbers a policy is planned with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pipelines.contracts.errors import ContractError


class BaseRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one metric on the champion: `rate` of events (for a rank loss, of positive labels), `mean` and
    `sd` of a loss or KPI, `paired_sd` of the difference of two models' losses, `sigma` of log latency. `effect`
    replaces the declared harm (of a metric that must be better: the improvement hoped for) in the plan.
    """

    rate: float | None = None
    mean: float | None = None
    sd: float | None = None
    paired_sd: float | None = None
    sigma: float = 0.5
    effect: float | None = None


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model's traffic: requests per hour, share of requests that get a label or KPI, base rates by metric; `units`,
    how many different units a stage meets, when the policy randomises units (each is bet on once a stage); `slices`,
    the share of traffic of each slice.
    """

    requests_per_hour: float
    units: int | None = None
    labelled: float = 1.0
    slices: dict[str, float] = {}
    metrics: dict[str, BaseRates] = {}

    @staticmethod
    def parse(mapping: Mapping[str, Any]) -> Rates:
        """The rates in `mapping`; a bare number for a metric is its rate and its mean. Raises ContractError with the
        path of what is wrong.
        """
        body = dict(mapping)
        if isinstance(body.get("metrics"), Mapping):
            body["metrics"] = {
                name: {"rate": base, "mean": base} if isinstance(base, (int, float)) else base
                for name, base in body["metrics"].items()
            }
        try:
            rates = msgspec.convert(body, Rates)
        except msgspec.ValidationError as error:
            raise ContractError(
                "base rates",
                got=str(error),
                expected="requests_per_hour, labelled, units, slices, metrics.<name>.rate|mean|sd|paired_sd|sigma",
            ) from error
        if not 0 < rates.requests_per_hour < math.inf or not 0 < rates.labelled <= 1:
            raise ContractError(
                "base rates",
                got=f"requests_per_hour {rates.requests_per_hour:g}, labelled {rates.labelled:g}",
                expected="more than 0, and a share in (0, 1]",
            )
        if rates.units is not None and rates.units < 1:
            raise ContractError("base rates: units", got=rates.units, expected="at least 1")
        for part, share in rates.slices.items():
            if not 0 < share <= 1:
                raise ContractError(f"base rates: slices.{part}", got=share, expected="a share in (0, 1]")
        for metric, base in rates.metrics.items():
            _check(metric, base)
        return rates

    def of(self, metric: str) -> BaseRates:
        """What is known of a metric; nothing, when it is not named."""
        return self.metrics.get(metric, BaseRates())


def _check(metric: str, base: BaseRates) -> None:
    for name in BaseRates.__struct_fields__:
        value: float | None = getattr(base, name)
        least = {"mean": -math.inf, "sigma": 0.0, "effect": 0.0}.get(name)
        if value is None:
            continue
        if not math.isfinite(value) or (value < 0 if least is None else value <= least):
            wanted = "a number of at least 0" if least is None else "a number" + " above 0" * (least == 0.0)
            raise ContractError(f"base rates: metrics.{metric}.{name}", got=value, expected=wanted)


class MissingRateError(ContractError):
    """A base rate that a metric cannot be planned without is not known."""


def required(metric: str, base: BaseRates, name: str) -> float:
    """A base rate that a metric cannot be planned without. Raises MissingRateError naming its path, ContractError for
    a `rate` of events that is none.
    """
    value: float | None = getattr(base, name)
    if value is None:
        raise MissingRateError(f"base rate of {metric}", got="nothing", expected=f"metrics.{metric}.{name}")
    if name == "rate" and not 0.0 < value < 1.0:
        raise ContractError(
            f"base rates: metrics.{metric}.rate",
            got=f"{value:g}",
            expected="a share between 0 and 1",
            hint="k events in n requests: (k + 0.5) / (n + 1), so that one never seen is rare and not impossible.",
        )
    return value
