"""Says in words what a decision does: the same actions that the executor does, printed."""

from __future__ import annotations

from pipelines.contracts.assignment import PPM
from pipelines.contracts.routes import Route
from pipelines.rollout.actions import (
    Action,
    AttachReport,
    EmitAsset,
    Freeze,
    Notify,
    SetAlias,
    SetChampion,
    SetRoute,
    TagRelease,
)
from pipelines.rollout.state import Decision


def explain(decision: Decision, actions: tuple[Action, ...]) -> list[str]:
    """Lines of plain text: the decision with its reason, what was measured beside the evidence, then each action."""
    where = decision.stage or "queue"
    head = f"{decision.kind} at {where}" + (f" -> {decision.next_stage}" if decision.next_stage else "")
    lines = [f"{head} by {decision.actor} ({decision.cause}): {decision.reason}"]
    lines += [f"  {name}: {words}" for name, words in measured(decision)]
    return lines + [f"  {sentence(action)}" for action in actions]


def measured(decision: Decision) -> list[tuple[str, str]]:
    """Name and words of each condition that was measured where the stage would end."""
    return [(each.name, each.words) for each in decision.conditions or ()]


def sentence(action: Action) -> str:
    """One action in words."""
    match action:
        case SetRoute(route=route):
            return f"set route of {route.model}: {_route(route)}"
        case Freeze():
            share = f" at share {action.share_ppm / PPM:.4g}" if action.share_ppm else ""
            return f"freeze {action.model} in {action.stage}{share}"
        case SetChampion():
            return f"make {action.release[:12]} champion of {action.model}"
        case TagRelease():
            tags = ", ".join(f"{key}={value}" for key, value in sorted(action.tags.items()))
            return f"tag release {action.release[:12]}: {tags}"
        case SetAlias(release=None):
            return f"remove alias {action.alias} of {action.model}"
        case SetAlias():
            return f"point alias {action.alias} of {action.model} at {(action.release or '')[:12]}"
        case EmitAsset():
            return f"emit asset {action.uri}"
        case AttachReport():
            return f"attach the page of {action.rollout_id} to release {action.release[:12]}"
        case Notify():
            way = {"log": "", "webhook": f" by webhook {action.to}", "email": f" {action.to} by e-mail"}[action.by]
            return f"{'page' if action.level == 'page' else 'notify'}{way}: {action.text}"


def _route(route: Route) -> str:
    clears = f", clearing overrides {', '.join(route.clears_overrides)}" if route.clears_overrides else ""
    if route.mode == "single":
        warm = f", {route.fallback[:12]} warm" if route.fallback else ""
        return f"{route.champion[:12]} answers alone{warm}{clears}"
    share = f"{route.share_ppm / PPM:.4g}" if route.share_ppm else "0"
    shadow = ", the other arm scores in the background" if route.shadow else ""
    return f"{route.champion[:12]} against {(route.challenger or '')[:12]} at share {share}{shadow}{clears}"
