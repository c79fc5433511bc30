"""From a decision to what has to be done: a pure function that the executor does and the explainer prints."""

from __future__ import annotations

import hashlib

from pipelines.contracts.assignment import PPM
from pipelines.contracts.errors import ContractError
from pipelines.contracts.routes import Mode, Route
from pipelines.rollout.actions import (
    Action,
    AttachReport,
    EmitAsset,
    Freeze,
    Level,
    Notify,
    SetAlias,
    SetChampion,
    SetRoute,
    TagRelease,
)
from pipelines.rollout.stages import Stage
from pipelines.rollout.state import Decision, Rollout


def salt_of(rollout_id: str) -> str:
    """The rollout's salt: the first 16 hex digits of SHA-256 over its id, so every rollout draws anew."""
    return hashlib.sha256(b"slipway rollout " + rollout_id.encode()).hexdigest()[:16]


def plan_actions(rollout: Rollout, decision: Decision, decision_id: str) -> tuple[Action, ...]:
    """Everything that follows from `decision` about `rollout` (the state before it), the route first."""
    if decision.kind == "rollback":
        return (*_withdraw(rollout, decision, decision_id), *_report(rollout))
    if decision.kind in ("hold", "inconclusive", "pause"):
        quiet = decision.kind == "pause" and decision.cause != "condition"
        frozen = () if rollout.champion is None else (_freeze(rollout),)
        return (*frozen, *_notify(rollout, decision, "info" if quiet else "page"))
    actions: list[Action] = []
    stage = rollout.stage_named(decision.next_stage) if decision.next_stage else None
    if decision.kind == "promote":
        actions += _promote(rollout, decision, decision_id, stage)
    elif stage is not None:
        actions += _enter(rollout, decision, decision_id, stage)
    if decision.kind != "continue" or stage is not None or decision.command:
        actions += _notify(rollout, decision, "info")
    if decision.kind == "promote":
        actions += _report(rollout)
    return tuple(actions)


def route_for(rollout: Rollout, stage: Stage, decision: Decision, decision_id: str) -> Route:
    """The route that stands while the rollout is in `stage` (one with live traffic). `version` is 0 until written."""
    if rollout.champion is None:
        raise ContractError(f"route of rollout {rollout.id}", got="no champion", expected="an approved first champion")
    if stage.kind == "bake":
        return _single(rollout, decision, decision_id, rollout.challenger, rollout.champion, stage.name, rollout.id)
    mode: Mode = "shadow" if stage.kind == "shadow" else "split"
    return Route(
        model=rollout.model,
        version=0,
        mode=mode,
        champion=rollout.champion,
        challenger=rollout.challenger,
        fallback=rollout.champion,
        rollout_id=rollout.id,
        decision_id=decision_id,
        stage=stage.name,
        share_ppm=stage.share_ppm,
        # The paired losses of shadow scoring are what quality is judged on, so it stays on in the canary.
        shadow=stage.kind != "ab",
        salt=rollout.salt,
        clears_overrides=list(decision.overrides),
        breaker=rollout.plan.breaker,
        slice_inputs=list(rollout.plan.slice_inputs),
        payload_ppm=rollout.plan.payload_ppm,
    )


def _report(rollout: Rollout) -> tuple[Action, ...]:
    """The page of a rollout that has compared something."""
    if rollout.champion is None or rollout.status == "waiting":
        return ()
    return (AttachReport(model=rollout.model, release=rollout.challenger, rollout_id=rollout.id),)


def _enter(rollout: Rollout, decision: Decision, decision_id: str, stage: Stage) -> list[Action]:
    if not stage.live:
        return [
            TagRelease(model=rollout.model, release=rollout.challenger, tags=_tags(rollout, f"rollout:{stage.name}"))
        ]
    return [
        SetRoute(route=route_for(rollout, stage, decision, decision_id)),
        TagRelease(model=rollout.model, release=rollout.challenger, tags=_tags(rollout, f"rollout:{stage.name}")),
        SetAlias(model=rollout.model, alias="challenger", release=rollout.challenger),
    ]


def _promote(rollout: Rollout, decision: Decision, decision_id: str, stage: Stage | None) -> list[Action]:
    """Into the bake (`stage` given): champion provisionally. Out of it, or without one: champion for good."""
    status = f"rollout:{stage.name}" if stage is not None else "champion"
    route = _single(
        rollout,
        decision,
        decision_id,
        rollout.challenger,
        rollout.champion,
        stage.name if stage is not None else "live",
        rollout.id if stage is not None else None,
    )
    actions: list[Action] = [SetRoute(route=route)]
    if not rollout.provisional:
        actions.append(SetChampion(model=rollout.model, release=rollout.challenger))
    actions += [
        TagRelease(model=rollout.model, release=rollout.challenger, tags=_tags(rollout, status)),
        SetAlias(model=rollout.model, alias="champion", release=rollout.challenger),
    ]
    if rollout.champion is not None and stage is None:
        tags = _tags(rollout, "retired")
        actions.append(TagRelease(model=rollout.model, release=rollout.champion, tags=tags))
    if stage is None:
        actions += [
            SetAlias(model=rollout.model, alias="challenger", release=None),
            EmitAsset(
                uri=f"champion://{rollout.model}", extra={"release": rollout.challenger, "decision_id": decision_id}
            ),
        ]
    return actions


def _withdraw(rollout: Rollout, decision: Decision, decision_id: str) -> tuple[Action, ...]:
    actions: list[Action] = []
    if rollout.champion is not None and rollout.status != "waiting":
        route = _single(rollout, decision, decision_id, rollout.champion, None, "live", None)
        actions.append(SetRoute(route=route))
        if rollout.provisional or rollout.status == "promoted":
            actions += [
                SetChampion(model=rollout.model, release=rollout.champion),
                SetAlias(model=rollout.model, alias="champion", release=rollout.champion),
                TagRelease(model=rollout.model, release=rollout.champion, tags=_tags(rollout, "champion")),
                EmitAsset(
                    uri=f"champion://{rollout.model}", extra={"release": rollout.champion, "decision_id": decision_id}
                ),
            ]
    actions += [
        TagRelease(model=rollout.model, release=rollout.challenger, tags=_tags(rollout, "withdrawn")),
        SetAlias(model=rollout.model, alias="challenger", release=None),
        *_notify(rollout, decision, "page" if decision.cause != "command" else "info"),
    ]
    return tuple(actions)


def _single(
    rollout: Rollout,
    decision: Decision,
    decision_id: str,
    champion: str,
    fallback: str | None,
    stage: str,
    rollout_id: str | None,
) -> Route:
    """One release answers; the fallback is warm."""
    return Route(
        model=rollout.model,
        version=0,
        mode="single",
        champion=champion,
        fallback=fallback,
        rollout_id=rollout_id,
        decision_id=decision_id,
        stage=stage,
        clears_overrides=list(decision.overrides),
        breaker=rollout.plan.breaker,
        slice_inputs=list(rollout.plan.slice_inputs),
        payload_ppm=rollout.plan.payload_ppm,
    )


def _freeze(rollout: Rollout) -> Freeze:
    return Freeze(model=rollout.model, stage=rollout.stage, share_ppm=rollout.current.share_ppm)


def _notify(rollout: Rollout, decision: Decision, level: Level) -> tuple[Notify, ...]:
    """The log always; and whom the plan names for messages of this level."""
    text = _text(rollout, decision)
    told = (Notify(level=level, text=text, by=who.by, to=who.to) for who in rollout.plan.notify if who.hears(level))
    return (Notify(level=level, text=text), *told)


def _tags(rollout: Rollout, status: str) -> dict[str, str]:
    return {"slipway.status": status, "slipway.rollout": rollout.id}


def _text(rollout: Rollout, decision: Decision) -> str:
    share = ""
    if decision.next_stage:
        ppm = rollout.stage_named(decision.next_stage).share_ppm
        share = f" -> {decision.next_stage}" + (f" ({ppm / PPM:.0%})" if ppm else "")
    return f"{rollout.id} {decision.stage or 'waiting'}{share}: {decision.kind}. {decision.reason}"
