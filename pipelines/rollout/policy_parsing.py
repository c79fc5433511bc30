"""The `slipway-gate/1` mapping -> Policy: every key checked, every default written out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from pipelines.rollout.policy import INTEGRITY, SCHEMA, STAGE_KINDS, Budget, Metric, Policy, Stage, StageKind
from pipelines.rollout.policy_metric import metric_of
from pipelines.rollout.policy_values import (
    AUTO,
    PolicyError,
    check_keys,
    choice,
    count,
    inside,
    inside_key_of,
    interval,
    listed,
    name_of,
    names_of,
    number,
    one_of,
    seconds,
)
from pipelines.stats.losses import OF_PROBABILITIES


def _stage(mapping: Mapping[str, Any]) -> Stage:
    check_keys("a stage", mapping, Stage.__struct_fields__)
    name = name_of("a stage", mapping)
    share = mapping.get("share")
    if share is not None:
        share = number(f"share of stage {name}", share, 0.0, 1.0)
    requests = mapping.get("requests")
    if requests == AUTO:
        raise PolicyError(
            f"requests of stage {name}",
            got=AUTO,
            expected="a number",
            hint="`auto` is settled when a rollout starts, or by `slipway gate plan` with base rates.",
        )
    if requests is not None:
        requests = count(f"requests of stage {name}", requests, 1)
    durations = {
        key: seconds(f"{key} of stage {name}", mapping[key])
        for key in ("min_event_time_s", "max_wait_s")
        if mapping.get(key) is not None
    }
    guess: StageKind = "shadow" if share is None else "canary"
    for kind in STAGE_KINDS:
        if name == kind or name.startswith(kind + "_"):
            guess = kind
    kind = cast("StageKind", choice(f"kind of stage {name}", mapping.get("kind", guess), STAGE_KINDS))
    if kind in ("canary", "ab") and (share is None or not 0.0 < share < 1.0):
        raise PolicyError(f"share of stage {name}", got=repr(share), expected="a number strictly between 0 and 1")
    weight = mapping.get("weight")
    if weight is not None:
        weight = number(f"weight of stage {name}", weight, 0.0, 1.0, open_low=True)
    return Stage(name=name, kind=kind, share=share, requests=requests, weight=weight, **durations)


def _weighed(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages with all weights written out, once one is declared; a bake that declares none has none."""
    total = sum(stage.weight or 0.0 for stage in stages)
    if not total:
        return stages
    rest = [stage.name for stage in stages if stage.weight is None and stage.kind != "bake"]
    if total > 1.0 + 1e-9 or (rest and total >= 1.0 - 1e-9):
        what = f"less than 1: {', '.join(rest)} share the rest" if rest else "at most 1: they share the budget"
        raise PolicyError("weights of the stages", got=f"a sum of {total:g}", expected=what)
    return tuple(
        msgspec.structs.replace(stage, weight=(1.0 - total) / len(rest)) if stage.name in rest else stage
        for stage in stages
    )


def _stages(value: object) -> tuple[Stage, ...]:
    stages = []
    for place, mapping in enumerate(listed("stages of the policy", value)):
        with inside(place), inside_key_of(mapping):
            stages.append(_stage(mapping))
    _all_different("stage", [stage.name for stage in stages])
    return _weighed(tuple(stages))


def _metrics(value: object, *, superior: bool) -> tuple[Metric, ...]:
    rows = listed("metrics of the policy", value)
    weighted = [row for row in rows if isinstance(row, Mapping) and row.get("weight") is not None]
    left = 1.0 - sum(float(row["weight"]) for row in weighted if isinstance(row["weight"], (int, float)))
    unweighted = len(rows) - len(weighted)
    share = max(left, 0.0) / unweighted if unweighted else 0.0
    metrics = []
    for place, row in enumerate(rows):
        with inside(place), inside_key_of(row):
            metrics.append(metric_of(row, share, superior=superior))
    _all_different("metric", [metric.name for metric in metrics])
    if superior and not any(metric.promote == "better" for metric in metrics):
        raise PolicyError(
            "metrics of a policy with an ab stage",
            got="none that has to be better",
            expected="`role: primary` on a mean or a paired_loss",
        )
    total = sum(metric.weight for metric in metrics)
    if total > 1.0 + 1e-9:
        raise PolicyError(
            "weights of the metrics", got=f"a sum of {total:g}", expected="at most 1: they share the budget"
        )
    return tuple(metrics)


def _all_different(what: str, names: list[str]) -> None:
    if not names:
        raise PolicyError(f"{what}s of the policy", got="none", expected="at least one")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PolicyError(f"{what}s of the policy", got=f"{', '.join(twice)} twice", expected="different names")


def _budget(value: object) -> Budget:
    check_keys("budget", value, Budget.__struct_fields__)
    levels = {}
    for name, level in cast("Mapping[str, Any]", value).items():
        with inside(name):
            levels[name] = number(f"budget.{name}", level, 0.0, 1.0, open_low=True, open_high=True)
    return Budget(**levels)


def parse(mapping: Mapping[str, Any]) -> Policy:
    """The policy in `mapping`; raises as `Policy.parse`."""
    check_keys("the policy", mapping, ("schema", *Policy.__struct_fields__))
    if mapping.get("schema", SCHEMA) != SCHEMA:
        with inside("schema"):
            raise PolicyError("schema of the policy", got=repr(mapping.get("schema")), expected=SCHEMA)
    with inside("budget"):
        budget = _budget(mapping.get("budget", {}))
    with inside("stages"):
        stages = _stages(mapping.get("stages", ()))
    with inside("metrics"):
        metrics = _metrics(mapping.get("metrics", ()), superior=any(stage.kind == "ab" for stage in stages))
    with inside("integrity"):
        integrity = names_of("integrity checks", mapping.get("integrity", INTEGRITY))
        for name in integrity:
            choice("integrity check", name, INTEGRITY)
    provable = [metric.name for metric in metrics if metric.provable and metric.role != "report"]
    with inside("require"):
        require = names_of("require", mapping.get("require", provable))
        for name in require:
            if name not in provable:
                raise one_of("metric in require (it needs a promote_margin and a role that acts)", name, provable)
    with inside("slices"):
        slices = names_of("slices", mapping.get("slices", ()))
    return Policy(
        budget=budget, stages=stages, slices=slices, metrics=metrics, integrity=integrity, require=require,
        **_scalars(mapping, metrics),
    )  # fmt: skip


def _scalars(mapping: Mapping[str, Any], metrics: tuple[Metric, ...]) -> dict[str, Any]:
    """The keys of one value each."""
    found: dict[str, Any] = {"kpi_maturity_s": None, "score_range": None}
    for key, default in (("response_deadline_s", 30.0), ("label_maturity_s", 3600.0), ("min_event_time_s", 0.0)):
        with inside(key):
            found[key] = seconds(key, mapping.get(key, default))
    if mapping.get("kpi_maturity_s") is not None:
        with inside("kpi_maturity_s"):
            found["kpi_maturity_s"] = seconds("kpi_maturity_s", mapping["kpi_maturity_s"])
    for key, default, low in (("warmup_requests", 0, 0), ("max_slices", 8, 1)):
        with inside(key):
            found[key] = count(key, mapping.get(key, default), low)
    with inside("unit"):
        found["unit"] = cast(
            "Literal['request', 'unit']", choice("unit", mapping.get("unit", "request"), ("request", "unit"))
        )
    if mapping.get("score_range") is not None:
        with inside("score_range"):
            found["score_range"] = interval("score_range", mapping["score_range"])
    elif any(metric.kind == "paired_loss" and metric.loss in OF_PROBABILITIES for metric in metrics):
        found["score_range"] = (0.0, 1.0)
    return found
