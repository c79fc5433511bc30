"""The part of a model's spec that says how a challenger goes its way, and what traffic it will meet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipelines.spec.durations import EventDuration, parse_on
from pipelines.spec.fields import Name, Strict
from pipelines.spec.problems import Problem

Share = Annotated[float, Field(gt=0, le=1)]


class BaseRate(Strict):
    """What is known of one metric on the champion: `rate` of events (of positive labels for a rank loss), `mean` and
    `sd` of a loss or KPI, `paired_sd` of the difference of two models' losses, `sigma` of log latency; `effect`: the
    harm (or improvement) to plan for.
    """

    rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    mean: float | None = None
    sd: Annotated[float, Field(gt=0)] | None = None
    paired_sd: Annotated[float, Field(gt=0)] | None = None
    sigma: Annotated[float, Field(gt=0)] | None = None
    effect: Annotated[float, Field(gt=0)] | None = None


class Traffic(Strict):
    """The traffic to expect, so that a policy can be planned before anything is logged. `labelled`: the share of
    requests that get a label or KPI; `units`: how many different units a stage meets; `slices`: shares of traffic.
    """

    requests_per_day: Annotated[float, Field(gt=0)]
    labelled: Share = 1.0
    units: Annotated[int, Field(ge=1)] | None = None
    slices: dict[str, Share] = Field(default_factory=dict)
    base_rates: dict[Name, BaseRate] = Field(default_factory=dict)


def _requests(value: object) -> object:
    """Says what is expected in one sentence, where a union would say it once a member."""
    if value is None or value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"got {value!r}; expected a whole number of at least 1, or auto")


class Stage(Strict):
    """One step of a rollout: `backtest`, `shadow`, `canary_*`, `ab_*` or `bake`. `share` is the challenger's.

    It lasts `requests` requests and at least `min_event_time`; `auto`: as many as the planner finds needed when the
    rollout starts. `weight`: its part of the error budget for harm that begins in it; stages without share the rest
    evenly. By default a backtest and a bake have a tenth each.
    """

    name: Annotated[str, Field(pattern=r"^(backtest|shadow|bake|canary_\w+|ab_\w+)$")]
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    requests: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"] | None, BeforeValidator(_requests)] = None
    min_event_time: EventDuration | None = None
    max_wait: EventDuration | None = None
    weight: Annotated[float, Field(gt=0, le=1)] | None = None


class Breaker(Strict):
    """The gateway's own circuit breaker for the challenger."""

    window: Annotated[int, Field(ge=1)] = 100
    failures: Annotated[int, Field(ge=1)] = 20
    timeout_ms: Annotated[int, Field(ge=1)] = 1000


class Notification(Strict):
    """Who else hears of a rollout's decisions: a `webhook` (URL) or an `email` (address). `page`: of pages alone."""

    webhook: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$")] | None = None
    level: Literal["info", "page"] = "info"


class ParityGate(Strict):
    """Whether a release leaves shadow only when what it read online is what the lake says (the views' `parity`).

    `sample`: most requests compared. `inputs`: also those inputs of the request that the `requests` transform gives.
    """

    gate: Literal["block", "report"] = "block"
    sample: Annotated[int, Field(ge=1)] = 2000
    inputs: bool = True


class Rollout(Strict):
    """A challenger's way. `policy` holds the keys of slipway-gate/1; `slipway check` validates it.

    `approvers` are asked when it is held; so many different ones of them as `approvals` says have to agree.
    """

    start: Literal["manual", "auto"] = "manual"
    approvers: list[str] = Field(default_factory=list)
    approvals: Annotated[int, Field(ge=1)] = 1
    notify: list[Notification] = Field(default_factory=list)
    max_wait: EventDuration
    stages: Annotated[list[Stage], Field(min_length=1)]
    policy: dict[str, Any]
    breaker: Breaker = Breaker()
    parity: ParityGate = ParityGate()


POLICY_DURATIONS = ("min_event_time", "kpi_maturity")
"""Keys of `policy` that are durations of event time; a slipway-gate/1 file has their seconds."""
_ORDER = {"backtest": 0, "shadow": 1, "canary": 2, "ab": 2, "bake": 3}


def problems(rollout: Rollout) -> Iterator[Problem]:
    """What is inconsistent inside the rollout of one spec."""
    yield from _stage_problems(rollout)
    for index, told in enumerate(rollout.notify):
        if (told.webhook is None) == (told.email is None):
            yield Problem(("notify", index), "give either a webhook or an email")
    for name in POLICY_DURATIONS:
        try:
            parse_on(rollout.policy.get(name, "0s event_time"), "event_time")
        except ValueError as error:
            yield Problem(("policy", name), f"rollout.policy.{name}: {error}")
    people = set(rollout.approvers)
    if not people:
        yield Problem((), "nobody is an approver: name who is asked when a rollout is held")
    elif rollout.approvals > len(people):
        yield Problem(("approvals",), f"{rollout.approvals} different people have to approve; {len(people)} may")


def _stage_problems(rollout: Rollout) -> Iterator[Problem]:
    names = [stage.name for stage in rollout.stages]
    for index, stage in enumerate(rollout.stages):
        at = ("stages", index)
        split = stage.name.startswith(("canary_", "ab_"))
        if split and stage.share is None:
            yield Problem(at, f"stage '{stage.name}' serves answers: it needs a share")
        if not split and stage.share is not None:
            yield Problem(
                (*at, "share"), f"stage '{stage.name}' has no share: only canary and ab stages split the traffic"
            )
        if stage.name != "backtest" and stage.requests is None:
            yield Problem(at, f"stage '{stage.name}' needs a number of requests, or `requests: auto`")
        if stage.name.startswith("ab_") and stage.min_event_time is None:
            yield Problem(
                at, f"stage '{stage.name}' compares at a fixed split: it needs a min_event_time, say 7d event_time"
            )
        if names.index(stage.name) != index:
            yield Problem((*at, "name"), f"stage '{stage.name}' is listed twice")
    shares = [stage.share for stage in rollout.stages if stage.share is not None and stage.name.startswith("canary_")]
    if shares != sorted(shares):
        yield Problem(("stages",), f"canary shares {shares} do not grow")
    if sum(name.startswith("ab_") for name in names) > 1:
        yield Problem(
            ("stages",), "more than one ab stage: the split of a comparison is fixed; ramp up by canary stages"
        )
    ranks = [_ORDER[name.partition("_")[0]] for name in names]
    if ranks != sorted(ranks):
        yield Problem(("stages",), f"stages {names} are out of order; expected backtest, shadow, canary or ab, bake")


def traffic_problems(traffic: Traffic, rollout: Rollout) -> Iterator[Problem]:
    """Base rates of metrics that the policy does not have, and slices that are more than all traffic."""
    listed = rollout.policy.get("metrics")
    names = [row["name"] for row in listed or () if isinstance(row, dict) and isinstance(row.get("name"), str)]
    for name in traffic.base_rates:
        if name not in names:
            yield Problem.unknown(("base_rates", name), "metric of the policy", name, names)
    if sum(traffic.slices.values()) > 1.0 + 1e-9:
        yield Problem(("slices",), f"shares of traffic sum to {sum(traffic.slices.values()):g}; expected at most 1")
