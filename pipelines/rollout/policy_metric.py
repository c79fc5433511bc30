"""One metric of a `slipway-gate/1` mapping -> Metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pipelines.rollout.policy import INTEGRITY, METRIC_KINDS, PROMISES, ROLES, Metric, MetricKind, Role
from pipelines.rollout.policy_values import PolicyError, check_keys, choice, inside, interval, name_of, number
from pipelines.stats.losses import LOSSES, OF_PROBABILITIES, RANK

_MARGINS = ("promote_margin_rel", "promote_margin_abs")
_DEFAULT_ROLE: dict[MetricKind, Role] = {
    "event": "guardrail",
    "quantile": "guardrail",
    "paired_mean": "report",
    "paired_abs": "report",
    "paired_loss": "primary",
    "mean": "kpi",
}
_OF_MEANS = ("harm_rel", "harm_abs", *_MARGINS)
_OWN: dict[MetricKind, tuple[str, ...]] = {
    "event": ("harm_ratio", "promote_margin_abs"),
    "quantile": ("q", "harm_ratio", "promote_margin_rel"),
    "paired_mean": ("tolerance_rel", "tolerance_abs", "hard_harm_rel"),
    "paired_abs": ("tolerance_rel", "tolerance_abs", "hard_harm_rel"),
    "paired_loss": (*_OF_MEANS, "hard_harm_rel", "cap", "q"),
    "mean": (*_OF_MEANS, "range"),
}
"""The numbers that the judge asks of a kind; any other would be declared and decide nothing."""


def metric_of(mapping: Mapping[str, Any], default_weight: float, *, superior: bool) -> Metric:
    """One metric; `superior`: the policy has a stage in which primary metrics have to be better."""
    check_keys("a metric", mapping, Metric.__struct_fields__)
    name = name_of("a metric", mapping)
    if name in INTEGRITY or not set("#/").isdisjoint(name):
        raise PolicyError(
            "name of a metric", got=repr(name), expected=f"one without # and /, and none of {', '.join(INTEGRITY)}"
        )
    kind = cast("MetricKind", choice(f"kind of metric {name}", mapping.get("kind"), METRIC_KINDS))
    _check_own(name, kind, mapping)
    given = mapping.get("weight")
    fields: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "weight": number(f"weight of metric {name}", default_weight if given is None else given, 0.0, 1.0),
        "role": choice(f"role of metric {name}", mapping.get("role", _DEFAULT_ROLE[kind]), ROLES),
        "event": choice(
            f"event of metric {name}",
            mapping.get("event", "invalid" if name.startswith("invalid") else "error"),
            ("error", "invalid"),
        ),
        "better": choice(f"better of metric {name}", mapping.get("better", "lower"), ("higher", "lower")),
        "loss": choice(f"loss of metric {name}", mapping.get("loss", "log"), (*LOSSES, RANK)),
        "clip": number(f"clip of metric {name}", mapping.get("clip", 0.01), 0.0, 0.5, open_low=True, open_high=True),
    }
    if mapping.get("harm_ratio") is not None:
        fields["harm_ratio"] = number(f"harm_ratio of metric {name}", mapping["harm_ratio"], 1.0)
    for key in ("harm_rel", "harm_abs", "hard_harm_rel", "tolerance_rel", "tolerance_abs"):
        if mapping.get(key) is not None:
            fields[key] = number(f"{key} of metric {name}", mapping[key])
    if mapping.get("cap") is not None:
        fields["cap"] = number(f"cap of metric {name}", mapping["cap"], open_low=True)
    if not isinstance(mapping.get("per_slice", False), bool):
        raise PolicyError(f"per_slice of metric {name}", got=repr(mapping["per_slice"]), expected="true or false")
    fields["per_slice"] = mapping.get("per_slice", False)
    fields |= _promise(name, mapping, kind, fields, superior=superior)
    if mapping.get("q") is not None:
        fields["q"] = number(f"q of metric {name}", mapping["q"], 0.0, 1.0, open_low=True, open_high=True)
    if mapping.get("range") is not None:
        fields["range"] = interval(f"range of metric {name}", mapping["range"])
    metric = Metric(**fields)
    for key in _needed(metric):
        if getattr(metric, key) is None:
            what = f"loss {metric.loss}" if kind == "paired_loss" else f"kind {kind}"
            raise PolicyError(f"{key} of metric {name}", got="nothing", expected=f"a value: {what} cannot be without")
    return metric


def _check_own(name: str, kind: MetricKind, mapping: Mapping[str, Any]) -> None:
    """Refuses a number that says nothing of a metric of this kind."""
    every = {key for own in _OWN.values() for key in own}
    for key in mapping:
        if key not in every or key in _OWN[kind] or mapping[key] is None:
            continue
        hint = ""
        if kind == "event" and key == "promote_margin_rel":
            hint = "A ratio of rare events needs more traffic than any rollout has; declare an absolute margin."
        with inside(key):
            raise PolicyError(
                f"{key} of metric {name}",
                got=repr(mapping[key]),
                expected=f"none: of the numbers, kind {kind} knows {', '.join(_OWN[kind])}",
                hint=hint,
            )


def _promise(
    name: str, mapping: Mapping[str, Any], kind: MetricKind, fields: Mapping[str, Any], *, superior: bool
) -> dict[str, Any]:
    """What must be proven of a metric: not worse by a margin, or better, which is a margin of zero."""
    margins = [key for key in _MARGINS if mapping.get(key) is not None]
    able = kind in ("mean", "paired_loss")
    default = "better" if superior and able and fields["role"] == "primary" else "not_worse"
    promote = choice(f"promote of metric {name}", mapping.get("promote", default), PROMISES)
    if promote == "not_worse":
        found = {key: number(f"{key} of metric {name}", mapping[key], open_low=True) for key in margins}
        if mapping.get("per_slice") and not margins:
            raise PolicyError(f"per_slice of metric {name}", got="no margin", expected="a promote_margin to prove")
        return {"promote": promote, **found}
    if not able:
        raise PolicyError(
            f"promote of metric {name}", got="better", expected="not_worse: only a mean or a paired_loss can be better"
        )
    if any(mapping[key] != 0 for key in margins):
        raise PolicyError(
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
