"""What is known about a rollout, told: as data, in words, and whether its record holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipelines.adapters.control_db import control_db
from pipelines.adapters.record_tables import actions_of, decision_of
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import TransientError
from pipelines.rollout import record
from pipelines.rollout.actions import SetRoute
from pipelines.rollout.commands import Command, Verb
from pipelines.rollout.decide import decide
from pipelines.rollout.executor import Effect
from pipelines.rollout.explainer import explain as explain_decision
from pipelines.rollout.explainer import measured
from pipelines.rollout.plan_actions import plan_actions
from pipelines.settings import Settings
from pipelines.wiring.record_copy import copied
from pipelines.wiring.rollout_gate import now, rollout_store, standing_of


def show(settings: Settings, rollout_id: str) -> dict[str, Any]:
    """Everything there is to know about a rollout, JSON-ready.

    `decisions` carry `id`, times on both clocks, actions with what was done, and `seconds_to_route` from the decision
    to the route that follows it (None when it changes no route).
    """
    store = rollout_store(settings)
    view = store.view(rollout_id)
    rollout = view.rollout
    entries = store.entries(rollout.model, rollout_id)
    effects = store.effects(rollout.model)
    decisions = [_told(line, effects) for line in entries]
    standing = standing_of(view)
    counts: dict[str, Any] = next((row.counts for row in view.evidence if row.part == "live"), {})
    last: list[dict[str, Any]] = next((each["verdicts"] for each in reversed(decisions) if each.get("verdicts")), [])
    return {
        "id": rollout.id,
        "model": rollout.model,
        "status": rollout.status,
        "stage": rollout.stage,
        "waits_for": store.in_its_way(rollout) if rollout.slot == "waiting" else None,
        "stages": [msgspec.to_builtins(stage) for stage in rollout.stages],
        "champion": rollout.champion,
        "challenger": rollout.challenger,
        "provisional": rollout.provisional,
        "paused": rollout.paused,
        "question": msgspec.to_builtins(rollout.question),
        "approvers": [*rollout.plan.approvers],
        "approvals": rollout.plan.approvals,
        "waived": [*rollout.waived],
        "actor": rollout.actor,
        "started": from_us(rollout.created_wall_us).isoformat(),
        "started_event_time": from_us(rollout.created_event_us).isoformat(),
        "policy_digest": rollout.policy_digest,
        "evidence_digest": standing.evidence_digest,
        "requests": standing.requests,
        "missing": [*standing.missing],
        "verdicts": standing.verdicts if rollout.slot == "running" else last,
        "exposed": counts.get("exposed", 0),
        "counts": counts,
        "backtest": next((row.counts for row in view.evidence if row.part == "backtest"), None),
        "overrides": view.overrides,
        "decisions": decisions,
    }


def _told(line: record.Entry, effects: Mapping[tuple[int, int], Effect]) -> dict[str, Any]:
    decision = decision_of(line)
    if decision is None:
        body = json.loads(line.body)
        return {"id": line.id, "kind": "observed", "override": body["override"], "actions": [], "hash": line.hash}
    actions, routed = [], None
    for index, action in enumerate(actions_of(line)):
        effect = effects.get((line.n, index))
        actions.append(msgspec.to_builtins(action) | {"done": effect is not None, "effect": effect and effect.detail})
        if isinstance(action, SetRoute) and effect is not None:
            routed = round((effect.done_us - decision.wall_us) / 1e6, 6)
    return {
        "id": line.id,
        "kind": decision.kind,
        "stage": decision.stage,
        "next_stage": decision.next_stage,
        "cause": decision.cause,
        "reason": decision.reason,
        "actor": decision.actor,
        "at": from_us(decision.wall_us).isoformat(),
        "event_time": from_us(decision.event_us).isoformat(),
        "seconds_to_route": routed,
        "metrics": [*decision.metrics],
        "command": decision.command,
        "shown": decision.shown,
        "approvals": [*decision.approvals],
        "overrides": [*decision.overrides],
        "evidence_digest": decision.evidence_digest,
        "verdicts": decision.verdicts,
        "conditions": [] if decision.conditions is msgspec.UNSET else msgspec.to_builtins(decision.conditions),
        "measured": measured(decision),
        "actions": actions,
        "hash": line.hash,
    }


def explain(settings: Settings, rollout_id: str, verb: Verb | None = None, actor: str = "") -> list[str]:
    """The rollout's decisions in words, then what would be decided now (by the gate, or by `verb`), done by nobody."""
    store = rollout_store(settings)
    view = store.view(rollout_id)
    settled = view.rollout.plan.settled
    lines = [
        f"{stage} lasts {requests:,} requests (auto, planned on traffic of {settled.source})"
        for stage, requests in settled.requests.items()
    ]
    for line in store.entries(view.rollout.model, rollout_id):
        decision = decision_of(line)
        if decision is not None:
            lines += [f"[{line.id}]", *explain_decision(decision, actions_of(line))]
    asked = Command(verb=verb, actor=actor) if verb is not None else None
    decision = decide(view.rollout, standing_of(view), now(settings), overrides=view.overrides, command=asked)
    planned = () if decision.is_wait else plan_actions(view.rollout, decision, f"{view.rollout.model}:next")
    if asked is None and view.rollout.slot == "ended":
        return [*lines, "[now]", f"nothing to decide: {decision.reason}"]
    return [*lines, "[now]", *explain_decision(decision, planned)]


def audit(settings: Settings) -> dict[str, list[str]]:
    """Faults of every model's record, by model; empty lists when all chains, anchors, tags in MLflow and copies in the
    lake hold.
    """
    store, copies = rollout_store(settings), copied(settings)
    faults = {}
    for model in sorted({*store.recorded_models(), *copies}):
        entries = store.entries(model)
        faults[model] = [
            *record.verify(entries, store.anchors(model)),
            *_against_mlflow(settings, model, entries),
            *record.compare(entries, copies.get(model, ())),
        ]
    return faults


def _against_mlflow(settings: Settings, model: str, entries: Sequence[record.Entry]) -> list[str]:
    """Where the record is not what MLflow was told of it; nothing for a model without releases there."""
    if not any(row.mlflow_run for row in control_db(settings).releases(model)):
        return []
    from pipelines.adapters import mlflow_registry

    try:
        heads = mlflow_registry.record_heads(settings, model)
    except TransientError as error:
        return [f"{model}: not compared with MLflow: {error}"]
    chain = {line.n: line.hash for line in entries}
    return [
        f"entry {n}: the hash {told[:12]} that MLflow was told is not in the chain"
        for n, told in sorted(heads.items())
        if chain.get(n) != told
    ]
