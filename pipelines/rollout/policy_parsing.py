"""The `slipway-gate/1` mapping -> Policy: every key checked, every default written out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

import msgspec

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import (
    INTEGRITY,
    METRIC_KINDS,
    PROMISES,
    ROLES,
    SCHEMA,
    STAGE_KINDS,
    Budget,
    Metric,
    MetricKind,
    Policy,
    Role,
    Stage,
    StageKind,
    unknown,
)
from pipelines.stats.losses import LOSSES, OF_PROBABILITIES, RANK

AUTO = "auto"
"""Number of requests of a stage that the planner settles."""
_MARGINS = ("promote_margin_rel", "promote_margin_abs")
_DEFAULT_ROLE: dict[MetricKind, Role] = {
    "event": "guardrail",
    "quantile": "guardrail",
    "paired_mean": "report",
    "paired_abs": "report",
    "paired_loss": "primary",
    "mean": "kpi",
}


def _check_keys(where: str, mapping: Mapping[str, Any], known: Iterable[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise ContractError(where, got=type(mapping).__name__, expected="a mapping")
    names = list(known)
    for key in mapping:
        if key not in names:
            raise unknown(f"key of {where}", key, names)


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
        raise unknown(where, value, names)
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
    if requests == AUTO:
        raise ContractError(
            f"requests of stage {name}",
            got=AUTO,
            expected="a number",
            hint="`auto` is settled when a rollout starts, or by `slipway gate plan` with base rates.",
        )
    if requests is not None:
        requests = _count(f"requests of stage {name}", requests, 1)
    durations = {
        key: _number(f"{key} of stage {name}", mapping[key])
        for key in ("min_event_time_s", "max_wait_s")
        if mapping.get(key) is not None
    }
    guess: StageKind = "shadow" if share is None else "canary"
    for kind in STAGE_KINDS:
        if name == kind or name.startswith(kind + "_"):
            guess = kind
    kind = cast("StageKind", _choice(f"kind of stage {name}", mapping.get("kind", guess), STAGE_KINDS))
    if kind in ("canary", "ab") and (share is None or not 0.0 < share < 1.0):
        raise ContractError(f"share of stage {name}", got=repr(share), expected="a number strictly between 0 and 1")
    weight = mapping.get("weight")
    if weight is not None:
        weight = _number(f"weight of stage {name}", weight, 0.0, 1.0, open_low=True)
    return Stage(name=name, kind=kind, share=share, requests=requests, weight=weight, **durations)


def _weighed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages with all weights written out, once one is declared; a bake that declares none has none."""
    total = sum(stage.weight or 0.0 for stage in stages)
    if not total:
        return stages
    rest = [stage.name for stage in stages if stage.weight is None and stage.kind != "bake"]
    if total > 1.0 + 1e-9 or (rest and total >= 1.0 - 1e-9):
        what = f"less than 1: {', '.join(rest)} share the rest" if rest else "at most 1: they share the budget"
        raise ContractError("weights of the stages", got=f"a sum of {total:g}", expected=what)
    return tuple(
        msgspec.structs.replace(stage, weight=(1.0 - total) / len(rest)) if stage.name in rest else stage
        for stage in stages
    )


def _metric(mapping: Mapping[str, Any], default_weight: float, *, superior: bool) -> Metric:
    """One metric; `superior`: the policy has a stage in which primary metrics have to be better."""
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
    if mapping.get("cap") is not None:
        fields["cap"] = _number(f"cap of metric {name}", mapping["cap"], open_low=True)
    if not isinstance(mapping.get("per_slice", False), bool):
        raise ContractError(f"per_slice of metric {name}", got=repr(mapping["per_slice"]), expected="true or false")
    fields["per_slice"] = mapping.get("per_slice", False)
    fields |= _promise(name, mapping, kind, fields, superior=superior)
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


def _promise(
    name: str, mapping: Mapping[str, Any], kind: MetricKind, fields: Mapping[str, Any], *, superior: bool
) -> dict[str, Any]:
    """What must be proven of a metric: not worse by a margin, or better, which is a margin of zero."""
    margins = [key for key in _MARGINS if mapping.get(key) is not None]
    able = kind in ("mean", "paired_loss")
    default = "better" if superior and able and fields["role"] == "primary" else "not_worse"
    promote = _choice(f"promote of metric {name}", mapping.get("promote", default), PROMISES)
    if promote == "not_worse":
        found = {key: _number(f"{key} of metric {name}", mapping[key], open_low=True) for key in margins}
        if mapping.get("per_slice") and not margins:
            raise ContractError(f"per_slice of metric {name}", got="no margin", expected="a promote_margin to prove")
        return {"promote": promote, **found}
    if not able:
        raise ContractError(
            f"promote of metric {name}", got="better", expected="not_worse: only a mean or a paired_loss can be better"
        )
    if any(mapping[key] != 0 for key in margins):
        raise ContractError(
            f"{margins[0]} of metric {name}",
            got=mapping[margins[0]],
            expected="none where the metric must be better",
            hint="`promote: not_worse` asks for the margin alone.",
        )
    return {"promote": promote, "promote_margin_abs": 0.0}


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


def parse(mapping: Mapping[str, Any]) -> Policy:
    """The policy in `mapping`; raises as `Policy.parse`."""
    _check_keys("the policy", mapping, ("schema", *Policy.__struct_fields__))
    if mapping.get("schema", SCHEMA) != SCHEMA:
        raise ContractError("schema of the policy", got=repr(mapping.get("schema")), expected=SCHEMA)
    budget = mapping.get("budget", {})
    _check_keys("budget", budget, Budget.__struct_fields__)
    levels = {k: _number(f"budget.{k}", v, 0.0, 1.0, open_low=True, open_high=True) for k, v in budget.items()}

    stages = _weighed(tuple(_stage(stage) for stage in mapping.get("stages", ())))
    rows = list(mapping.get("metrics", ()))
    weighted = [row for row in rows if isinstance(row, Mapping) and row.get("weight") is not None]
    left = 1.0 - sum(float(row["weight"]) for row in weighted if isinstance(row["weight"], (int, float)))
    unweighted = len(rows) - len(weighted)
    superior = any(stage.kind == "ab" for stage in stages)
    share = max(left, 0.0) / unweighted if unweighted else 0.0
    metrics = tuple(_metric(row, share, superior=superior) for row in rows)
    for what, names in (("stage", [s.name for s in stages]), ("metric", [m.name for m in metrics])):
        if not names:
            raise ContractError(f"{what}s of the policy", got="none", expected="at least one")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(f"{what}s of the policy", got=f"{', '.join(twice)} twice", expected="different names")
    if superior and not any(metric.promote == "better" for metric in metrics):
        raise ContractError(
            "metrics of a policy with an ab stage",
            got="none that has to be better",
            expected="`role: primary` on a mean or a paired_loss",
        )
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
            raise unknown("metric in require (it needs a promote_margin and a role that acts)", name, provable)
    kpi_maturity = mapping.get("kpi_maturity_s")
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
        kpi_maturity_s=None if kpi_maturity is None else _number("kpi_maturity_s", kpi_maturity),
    )
