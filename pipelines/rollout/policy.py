"""The policy of a rollout: what is judged, against which margins, with which error budget.

A `Policy` is parsed once from the `slipway-gate/1` mapping, is frozen, and is named by its digest. Nothing in it
depends on data. Durations end in `_s` (seconds): `response_deadline_s` on the wall clock, the others in event time.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import msgspec

from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import ContractError
from pipelines.stats.losses import LOSSES, OF_PROBABILITIES, RANK, Loss

SCHEMA = "slipway-gate/1"

StageKind = Literal["backtest", "shadow", "canary", "ab", "bake"]
MetricKind = Literal["event", "quantile", "paired_mean", "paired_abs", "paired_loss", "mean"]
Role = Literal["guardrail", "primary", "secondary", "kpi", "report"]

STAGE_KINDS: tuple[StageKind, ...] = ("backtest", "shadow", "canary", "ab", "bake")
METRIC_KINDS: tuple[MetricKind, ...] = ("event", "quantile", "paired_mean", "paired_abs", "paired_loss", "mean")
ROLES: tuple[Role, ...] = ("guardrail", "primary", "secondary", "kpi", "report")
INTEGRITY: tuple[str, ...] = ("sample_ratio", "lost_responses", "duplicates")

_DEFAULT_ROLE: dict[MetricKind, Role] = {
    "event": "guardrail",
    "quantile": "guardrail",
    "paired_mean": "report",
    "paired_abs": "report",
    "paired_loss": "primary",
    "mean": "kpi",
}


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Upper bounds of the error probabilities over the whole life of one rollout."""

    rollback: float = 0.01
    hold: float = 0.01
    promote: float = 0.05


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. `share` is the challenger's declared share (None: every request is scored by both arms)."""

    name: str
    kind: StageKind
    share: float | None = None
    requests: int | None = None
    max_wait_s: float | None = None

    @property
    def randomised(self) -> bool:
        """Whether the arm is drawn here, so that one may bet on the assignment."""
        return self.share is not None and 0.0 < self.share < 1.0


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric. Margins are in the metric's own unit (`_abs`) or relative to the champion's level (`_rel`).

    `harm_*` is the practical margin a rollback needs beside its e-value; `promote_margin_*` the loss that must be ruled
    out for promotion; `hard_harm_rel` the harm past which a paired metric acts before `min_event_time_s` is over.
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

    @staticmethod
    def parse(mapping: Mapping[str, Any]) -> Policy:
        """The policy in `mapping`. Raises ContractError naming the key, what was got and the nearest known name."""
        return _parse(mapping)

    def to_mapping(self) -> dict[str, Any]:
        """The complete mapping, defaults written out: `Policy.parse(p.to_mapping()) == p`."""
        body = cast("dict[str, Any]", msgspec.to_builtins(self))
        body["metrics"] = [{k: v for k, v in metric.items() if v is not None} for metric in body["metrics"]]
        body["stages"] = [{k: v for k, v in stage.items() if v is not None or k == "share"} for stage in body["stages"]]
        if body["score_range"] is None:
            del body["score_range"]
        return {"schema": SCHEMA, **body}

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the canonical JSON of the complete mapping."""
        return digest(self.to_mapping())

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises ContractError with the nearest name."""
        return self.stages[self.stage_index(name)]

    def stage_index(self, name: str) -> int:
        """The position of the stage called `name`. Raises ContractError with the nearest name."""
        for index, stage in enumerate(self.stages):
            if stage.name == name:
                return index
        raise _unknown("stage", name, [stage.name for stage in self.stages])

    def metric(self, name: str) -> Metric:
        """The metric called `name`. Raises ContractError with the nearest name."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise _unknown("metric", name, [metric.name for metric in self.metrics])


def _unknown(what: str, got: object, known: Iterable[str]) -> ContractError:
    names = list(known)
    near = difflib.get_close_matches(str(got), names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    return ContractError(f"unknown {what}", got=repr(got), expected="one of " + ", ".join(names), hint=hint)


def _check_keys(where: str, mapping: Mapping[str, Any], known: Iterable[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise ContractError(where, got=type(mapping).__name__, expected="a mapping")
    names = list(known)
    for key in mapping:
        if key not in names:
            raise _unknown(f"key of {where}", key, names)


def _number(
    where: str,
    value: object,
    low: float = 0.0,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if fits:
        number = float(cast("float", value))
        fits = (low < number if open_low else low <= number) and (number < high if open_high else number <= high)
    if not fits:
        bounds = (
            f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high or high == math.inf else ']'}"
        )
        raise ContractError(where, got=repr(value), expected=bounds)
    return float(cast("float", value))


def _count(where: str, value: object, low: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ContractError(where, got=repr(value), expected=f"a whole number of at least {low}")
    return value


def _choice(where: str, value: object, known: Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        raise _unknown(where, value, names)
    return str(value)


def _interval(where: str, value: object) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ContractError(where, got=repr(value), expected="[low, high]")
    low, high = (_number(where, bound, -math.inf) for bound in value)
    if not low < high:
        raise ContractError(where, got=repr(value), expected="[low, high] with low < high")
    return low, high


def _name(where: str, mapping: Mapping[str, Any]) -> str:
    name = mapping.get("name")
    if not isinstance(name, str) or not name:
        raise ContractError(f"name of {where}", got=repr(name), expected="a text")
    return name


def _stage(mapping: Mapping[str, Any]) -> Stage:
    _check_keys("a stage", mapping, Stage.__struct_fields__)
    name = _name("a stage", mapping)
    share = mapping.get("share")
    if share is not None:
        share = _number(f"share of stage {name}", share, 0.0, 1.0)
    requests = mapping.get("requests")
    if requests is not None:
        requests = _count(f"requests of stage {name}", requests, 1)
    wait = mapping.get("max_wait_s")
    if wait is not None:
        wait = _number(f"max_wait_s of stage {name}", wait)
    guess: StageKind = "shadow" if share is None else "canary"
    for kind in STAGE_KINDS:
        if name == kind or name.startswith(kind + "_"):
            guess = kind
    kind = cast("StageKind", _choice(f"kind of stage {name}", mapping.get("kind", guess), STAGE_KINDS))
    if kind in ("canary", "ab") and (share is None or not 0.0 < share < 1.0):
        raise ContractError(f"share of stage {name}", got=repr(share), expected="a number strictly between 0 and 1")
    return Stage(name=name, kind=kind, share=share, requests=requests, max_wait_s=wait)


def _metric(mapping: Mapping[str, Any], default_weight: float) -> Metric:
    _check_keys("a metric", mapping, Metric.__struct_fields__)
    name = _name("a metric", mapping)
    kind = cast("MetricKind", _choice(f"kind of metric {name}", mapping.get("kind"), METRIC_KINDS))
    given = mapping.get("weight")
    fields: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "weight": _number(f"weight of metric {name}", default_weight if given is None else given, 0.0, 1.0),
        "role": _choice(f"role of metric {name}", mapping.get("role", _DEFAULT_ROLE[kind]), ROLES),
        "event": _choice(
            f"event of metric {name}",
            mapping.get("event", "invalid" if name.startswith("invalid") else "error"),
            ("error", "invalid"),
        ),
        "better": _choice(f"better of metric {name}", mapping.get("better", "lower"), ("higher", "lower")),
        "loss": _choice(f"loss of metric {name}", mapping.get("loss", "log"), (*LOSSES, RANK)),
        "clip": _number(f"clip of metric {name}", mapping.get("clip", 0.01), 0.0, 0.5, open_low=True, open_high=True),
    }
    if mapping.get("harm_ratio") is not None:
        fields["harm_ratio"] = _number(f"harm_ratio of metric {name}", mapping["harm_ratio"], 1.0)
    for key in ("harm_rel", "harm_abs", "hard_harm_rel", "tolerance_rel", "tolerance_abs"):
        if mapping.get(key) is not None:
            fields[key] = _number(f"{key} of metric {name}", mapping[key])
    for key in ("promote_margin_rel", "promote_margin_abs", "cap"):
        if mapping.get(key) is not None:
            fields[key] = _number(f"{key} of metric {name}", mapping[key], open_low=True)
    if mapping.get("q") is not None:
        fields["q"] = _number(f"q of metric {name}", mapping["q"], 0.0, 1.0, open_low=True, open_high=True)
    if mapping.get("range") is not None:
        fields["range"] = _interval(f"range of metric {name}", mapping["range"])
    metric = Metric(**fields)
    for key in _needed(metric):
        if getattr(metric, key) is None:
            what = f"loss {metric.loss}" if kind == "paired_loss" else f"kind {kind}"
            raise ContractError(f"{key} of metric {name}", got="nothing", expected=f"a value: {what} cannot be without")
    if kind == "event" and metric.promote_margin_rel is not None:
        raise ContractError(
            f"promote_margin_rel of metric {name}",
            got=metric.promote_margin_rel,
            expected="promote_margin_abs",
            hint="A ratio of rare events needs more traffic than any rollout has; declare an absolute margin.",
        )
    return metric


def _needed(metric: Metric) -> tuple[str, ...]:
    """What a metric of its kind has to declare."""
    match metric.kind:
        case "quantile":
            return ("q",)
        case "mean":
            return ("range",)
        case "paired_loss" if metric.loss == "pinball":
            return ("q", "cap")
        case "paired_loss" if metric.loss not in (*OF_PROBABILITIES, RANK):
            return ("cap",)
        case _:
            return ()


def _parse(mapping: Mapping[str, Any]) -> Policy:
    _check_keys("the policy", mapping, ("schema", *Policy.__struct_fields__))
    if mapping.get("schema", SCHEMA) != SCHEMA:
        raise ContractError("schema of the policy", got=repr(mapping.get("schema")), expected=SCHEMA)
    budget = mapping.get("budget", {})
    _check_keys("budget", budget, Budget.__struct_fields__)
    levels = {k: _number(f"budget.{k}", v, 0.0, 1.0, open_low=True, open_high=True) for k, v in budget.items()}

    stages = tuple(_stage(stage) for stage in mapping.get("stages", ()))
    rows = list(mapping.get("metrics", ()))
    weighted = [row for row in rows if isinstance(row, Mapping) and row.get("weight") is not None]
    left = 1.0 - sum(float(row["weight"]) for row in weighted if isinstance(row["weight"], (int, float)))
    unweighted = len(rows) - len(weighted)
    metrics = tuple(_metric(row, max(left, 0.0) / unweighted if unweighted else 0.0) for row in rows)
    for what, names in (("stage", [s.name for s in stages]), ("metric", [m.name for m in metrics])):
        if not names:
            raise ContractError(f"{what}s of the policy", got="none", expected="at least one")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(f"{what}s of the policy", got=f"{', '.join(twice)} twice", expected="different names")
    total = sum(metric.weight for metric in metrics)
    if total > 1.0 + 1e-9:
        raise ContractError(
            "weights of the metrics", got=f"a sum of {total:g}", expected="at most 1: they share the budget"
        )

    integrity = tuple(_choice("integrity check", name, INTEGRITY) for name in mapping.get("integrity", INTEGRITY))
    provable = [metric.name for metric in metrics if metric.provable and metric.role != "report"]
    require = tuple(mapping.get("require", provable))
    for name in require:
        if name not in provable:
            raise _unknown("metric in require (it needs a promote_margin and a role that acts)", name, provable)
    score_range = mapping.get("score_range")
    if score_range is not None:
        score_range = _interval("score_range", score_range)
    elif any(metric.kind == "paired_loss" and metric.loss in OF_PROBABILITIES for metric in metrics):
        score_range = (0.0, 1.0)
    return Policy(
        budget=Budget(**levels),
        unit=cast("Literal['request', 'unit']", _choice("unit", mapping.get("unit", "request"), ("request", "unit"))),
        warmup_requests=_count("warmup_requests", mapping.get("warmup_requests", 0)),
        response_deadline_s=_number("response_deadline_s", mapping.get("response_deadline_s", 30.0)),
        label_maturity_s=_number("label_maturity_s", mapping.get("label_maturity_s", 3600.0)),
        min_event_time_s=_number("min_event_time_s", mapping.get("min_event_time_s", 0.0)),
        stages=stages,
        slices=tuple(str(name) for name in mapping.get("slices", ())),
        max_slices=_count("max_slices", mapping.get("max_slices", 8), 1),
        metrics=metrics,
        integrity=integrity,
        require=require,
        score_range=score_range,
    )
