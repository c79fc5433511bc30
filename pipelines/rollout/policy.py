"""The policy of a rollout: what is judged, against which margins, with which error budget.

A `Policy` is parsed once from the `slipway-gate/1` mapping, is frozen, and is named by its digest. Nothing in it
depends on data. Durations end in `_s` (seconds): `response_deadline_s` on the wall clock, the others in event time.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import msgspec

from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import ContractError
from pipelines.stats.losses import Loss

SCHEMA = "slipway-gate/1"

StageKind = Literal["backtest", "shadow", "canary", "ab", "bake"]
MetricKind = Literal["event", "quantile", "paired_mean", "paired_abs", "paired_loss", "mean"]
Role = Literal["guardrail", "primary", "secondary", "kpi", "report"]
Promise = Literal["not_worse", "better"]

STAGE_KINDS: tuple[StageKind, ...] = ("backtest", "shadow", "canary", "ab", "bake")
METRIC_KINDS: tuple[MetricKind, ...] = ("event", "quantile", "paired_mean", "paired_abs", "paired_loss", "mean")
ROLES: tuple[Role, ...] = ("guardrail", "primary", "secondary", "kpi", "report")
PROMISES: tuple[Promise, ...] = ("not_worse", "better")
INTEGRITY: tuple[str, ...] = ("sample_ratio", "lost_responses", "duplicates")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds of the error probabilities over the whole life of one rollout."""

    rollback: float = 0.01
    hold: float = 0.01
    promote: float = 0.05


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. `share` is the challenger's declared share (None: every request is scored by both arms).

    It lasts `requests` requests and at least `min_event_time_s`. `weight` is its part of the error budget that is kept
    for harm beginning in it (of all stages with a weight: those without share the rest evenly; without any weight all
    are alike). A bake with a weight has evidence of its own: the pairs whose labels mature while it bakes.
    """

    name: str
    kind: StageKind
    share: float | None = None
    requests: int | None = None
    min_event_time_s: float | None = None
    max_wait_s: float | None = None
    weight: float | None = None

    @property
    def compares(self) -> bool:
        """Whether both arms answer here; while it bakes the challenger is alone."""
        return self.kind != "bake"

    @property
    def pairs(self) -> bool:
        """Whether both arms score the same requests here: not where the traffic is only split."""
        return self.kind not in ("ab", "bake")

    @property
    def rejudges(self) -> bool:
        """Whether pairs whose labels mature here are this stage's evidence, whenever they were asked."""
        return self.kind == "bake" and self.weight is not None

    @property
    def randomised(self) -> bool:
        """Whether the arm is drawn here, so that one may bet on the assignment."""
        return self.share is not None and 0.0 < self.share < 1.0


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. Margins are in the metric's own unit (`_abs`) or relative to the champion's level (`_rel`).

    `harm_*` is the practical margin a rollback needs beside its e-value; `promote_margin_*` the loss that must be ruled
    out for promotion; `hard_harm_rel` the harm past which a paired metric acts before `min_event_time_s` is over.
    `promote: better` asks for proof that the challenger is better, which is a margin of zero: the default of a primary
    metric where the policy has an `ab` stage. With `per_slice` the proof must be in for each slice.
    `range` bounds a `mean`; `cap` bounds one squared, absolute or pinball loss; `clip` keeps scores in
    [clip, 1 - clip]; `q` is the level of a quantile or of a pinball loss.
    """

    name: str
    kind: MetricKind
    weight: float
    role: Role
    event: Literal["error", "invalid"] = "error"
    better: Literal["higher", "lower"] = "lower"
    harm_ratio: float | None = None
    harm_rel: float | None = None
    harm_abs: float | None = None
    hard_harm_rel: float | None = None
    promote_margin_rel: float | None = None
    promote_margin_abs: float | None = None
    promote: Promise = "not_worse"
    per_slice: bool = False
    q: float | None = None
    loss: Loss | Literal["rank"] = "log"
    clip: float = 0.01
    cap: float | None = None
    range: tuple[float, float] | None = None
    tolerance_rel: float | None = None
    tolerance_abs: float | None = None

    @property
    def paired(self) -> bool:
        """Whether it compares both arms on the same request, wherever both answered."""
        return self.kind in ("paired_mean", "paired_abs", "paired_loss")

    @property
    def provable(self) -> bool:
        """Whether it declares what must be ruled out for promotion."""
        return self.promote_margin_rel is not None or self.promote_margin_abs is not None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed, complete `slipway-gate/1` policy. Build it with `Policy.parse`."""

    budget: Budget
    unit: Literal["request", "unit"]
    warmup_requests: int
    response_deadline_s: float
    label_maturity_s: float
    min_event_time_s: float
    stages: tuple[Stage, ...]
    slices: tuple[str, ...]
    max_slices: int
    metrics: tuple[Metric, ...]
    integrity: tuple[str, ...]
    require: tuple[str, ...]
    score_range: tuple[float, float] | None
    kpi_maturity_s: float | None = None
    """When a request's KPI is complete, where that is sooner or later than its label; None: with the label."""

    @staticmethod
    def parse(mapping: Mapping[str, Any]) -> Policy:
        """The policy in `mapping`. Raises ContractError naming the key, what was got and the nearest known name."""
        from pipelines.rollout.policy_parsing import parse

        return parse(mapping)

    def to_mapping(self) -> dict[str, Any]:
        """The complete mapping, defaults written out: `Policy.parse(p.to_mapping()) == p`."""
        body = cast("dict[str, Any]", msgspec.to_builtins(self))
        body["metrics"] = [{k: v for k, v in metric.items() if v is not None} for metric in body["metrics"]]
        body["stages"] = [{k: v for k, v in stage.items() if v is not None or k == "share"} for stage in body["stages"]]
        for name in ("score_range", "kpi_maturity_s"):
            if body[name] is None:
                del body[name]
        return {"schema": SCHEMA, **body}

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the canonical JSON of the complete mapping."""
        return digest(self.to_mapping())

    @property
    def kpis(self) -> tuple[str, ...]:
        """The mean metrics: each is of the KPI values of its name."""
        return tuple(metric.name for metric in self.metrics if metric.kind == "mean")

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises ContractError with the nearest name."""
        return self.stages[self.stage_index(name)]

    def stage_index(self, name: str) -> int:
        """The position of the stage called `name`. Raises ContractError with the nearest name."""
        for index, stage in enumerate(self.stages):
            if stage.name == name:
                return index
        raise unknown("stage", name, [stage.name for stage in self.stages])

    def metric(self, name: str) -> Metric:
        """The metric called `name`. Raises ContractError with the nearest name."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise unknown("metric", name, [metric.name for metric in self.metrics])


def unknown(what: str, got: object, known: Iterable[str]) -> ContractError:
    """The error of a name that is not among the known ones, with the nearest."""
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    return ContractError(f"unknown {what}", got=repr(got), expected="one of " + ", ".join(names), hint=hint)
