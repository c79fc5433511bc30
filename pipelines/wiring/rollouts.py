"""The jobs of a rollout: what Airflow's tasks, the command line, the collector and the rehearsal call.

Every job reads, decides by a pure function, appends the decision to the record and returns; `advance` does what the
record orders. All are idempotent: a job about a rollout or stage that is not current does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from pipelines.adapters.control_db import control_db
from pipelines.adapters.rollout_store import EvidenceRow, RolloutStore
from pipelines.contracts.errors import NotFoundError, StaleDecisionError, TerminalError
from pipelines.contracts.events import Override
from pipelines.rollout.commands import Command
from pipelines.rollout.decide import begin, decide
from pipelines.rollout.executor import Effect, execute
from pipelines.rollout.plan_actions import salt_of
from pipelines.rollout.standing import Standing
from pipelines.rollout.state import Decision, Plan, Rollout
from pipelines.settings import Settings
from pipelines.wiring import record_copy
from pipelines.wiring.gate_conditions import measured
from pipelines.wiring.rollout_commands import approve, command, pause, question, reject, resume, rollback, skip
from pipelines.wiring.rollout_gate import fold_backtest, now, plan_of, rollout_store, standing_of
from pipelines.wiring.rollout_mirrors import mirrors
from pipelines.wiring.rollout_plan import planned
from pipelines.wiring.rollout_report import audit, explain, show

__all__ = [
    "Look",
    "advance",
    "approve",
    "audit",
    "backtest",
    "begin_waiting",
    "command",
    "explain",
    "find_release",
    "list",
    "load",
    "look",
    "observe_overrides",
    "pause",
    "plan_of",
    "planned",
    "question",
    "reject",
    "resume",
    "rollback",
    "rollout_store",
    "set_routes",
    "show",
    "skip",
    "start",
    "withdraw_harm",
]

_overrides = msgspec.json.Decoder(Override)
# `list` is the name of a job here, so the lists of this module's signatures have names of their own.
Effects = list[Effect]
Rollouts = list[Rollout]


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What one look saw. `current`: the stage asked about is the rollout's; `decision` is set when one was recorded now
    (its id in `decision_id`).
    """

    rollout_id: str
    stage: str
    current: bool
    status: str
    verdicts: Sequence[dict[str, Any]]
    decision: Decision | None = None
    decision_id: str = ""


# --- starting ---------------------------------------------------------------------------------------------------------
def start(
    settings: Settings,
    model: str,
    challenger: str = "",
    *,
    as_of_us: int | None = None,
    actor: str = "unknown",
    plan: Plan | None = None,
) -> Rollout:
    """Queue a rollout of `challenger` (digest, its beginning, or version; empty: the newest registered release).

    It runs at once when no other rollout of the model does; one that waits already is replaced. Starting the release
    that is under way returns its rollout. The plan is the model spec's unless given. Raises NotFoundError for an
    unknown release, TerminalError for the champion's own, SpecError or ContractError for a plan that cannot be.
    """
    release = find_release(settings, model, challenger)
    if plan is None:
        plan = planned(settings, model, release)
    store, moment = rollout_store(settings), now(settings, as_of_us)
    open_ones = [rollout for rollout in store.rollouts(model, unreadable={}) if rollout.slot != "ended"]
    for rollout in open_ones:
        if rollout.challenger == release:
            return rollout
    if release == control_db(settings).champion(model):
        got, hint = f"release {release[:12]}, which is its champion", "Train a release to put forward."
        raise TerminalError(f"rollout of {model}", got=got, expected="another release", hint=hint)
    for rollout in open_ones:
        if rollout.slot == "waiting":
            replace = Command(verb="replace", actor=actor, reason=f"release {release[:12]} takes its place")
            store.commit(rollout, decide(rollout, Standing(), moment, command=replace))
    policy_digest = plan.digest()
    plan_ = plan

    def make(n: int, champion: str | None) -> Rollout:
        rollout_id = f"{model}-r{n}"
        return Rollout(
            id=rollout_id,
            model=model,
            challenger=release,
            champion=champion,
            plan=plan_,
            policy_digest=policy_digest,
            salt=salt_of(rollout_id),
            status="waiting",
            stage="",
            actor=actor,
            created_event_us=moment.event_us,
            created_wall_us=moment.wall_us,
            stage_event_us=moment.event_us,
            stage_wall_us=moment.wall_us,
        )

    queued = store.insert(model, make)
    begin_waiting(settings, model, as_of_us=as_of_us)
    return store.load(queued.id)


def begin_waiting(settings: Settings, model: str, *, as_of_us: int | None = None) -> Rollout | None:
    """Let the model's waiting rollout begin when none is in its way; returns it, or None when nothing could begin."""
    store = rollout_store(settings)
    waiting = store.rollouts(model, slot="waiting")
    if not waiting or store.in_its_way(waiting[0]):
        return None
    execute(store, {}, model)  # the champion it has to beat must stand before it begins
    rollout = store.refresh_waiting(waiting[0])
    try:
        _, after = store.commit(rollout, begin(rollout, now(settings, as_of_us), rollout.actor))
    except StaleDecisionError:
        return None
    return after


def find_release(settings: Settings, model: str, name: str) -> str:
    """The digest of a registered release by digest, beginning of it, or version; empty: the newest registered one.

    A bundle that lies under `releases/` without being registered is found by its full digest. Raises NotFoundError.
    """
    db = control_db(settings)
    if not name:
        rows = [row for row in db.releases(model) if row.status == "registered"]
        if not rows:
            raise NotFoundError(f"release of {model}", got="none registered", expected="one", hint="Train one first.")
        return rows[-1].digest
    if len(name) == 64 and (settings.releases / name / "release.json").is_file():
        return name
    return db.release(name, model).digest


# --- looking ----------------------------------------------------------------------------------------------------------
def look(settings: Settings, rollout_id: str, stage: str = "", *, as_of_us: int | None = None) -> Look:
    """Judge the evidence of now and record the decision, if there is one to take.

    `stage`: the stage the caller watches (empty: whichever is current); about any other nothing is done. Raises
    NotFoundError; StaleDecisionError never: losing a race means that somebody else has decided.
    """
    store = rollout_store(settings)
    view = store.view(rollout_id)
    rollout = view.rollout
    if rollout.status == "waiting":
        begun = begin_waiting(settings, rollout.model, as_of_us=as_of_us)
        if begun is None or begun.id != rollout_id:
            return Look(rollout_id=rollout_id, stage=stage, current=False, status="waiting", verdicts=[])
        view = store.view(rollout_id)
        rollout = view.rollout
    if rollout.slot != "running" or (stage and stage != rollout.stage):
        return Look(rollout_id=rollout_id, stage=stage, current=False, status=rollout.status, verdicts=[])
    standing, moment = standing_of(view), now(settings, as_of_us)
    decision = decide(rollout, standing, moment, overrides=view.overrides)
    if decision.cause == "stage_done":  # measured only where they count: that takes time
        standing = msgspec.structs.replace(standing, conditions=measured(settings, rollout, moment.event_us))
        decision = decide(rollout, standing, moment, overrides=view.overrides)
    if decision.is_wait:
        return _looked(rollout, standing)
    try:
        line, after = store.commit(rollout, decision)
    except StaleDecisionError:
        return _looked(store.load(rollout_id), standing)
    return msgspec.structs.replace(
        _looked(after, standing), decision=decision, decision_id=line.id, stage=rollout.stage
    )


def _looked(rollout: Rollout, standing: Standing) -> Look:
    return Look(
        rollout_id=rollout.id, stage=rollout.stage, current=True, status=rollout.status, verdicts=standing.verdicts
    )


def backtest(settings: Settings, rollout_id: str) -> dict[str, Any]:
    """Run the challenger over logged requests with known labels and store the evidence, once a rollout.

    Returns the number of requests judged; 0 (fewer than the stage asks for) with the reason under `no_data`, and the
    rollout goes on.
    Does nothing when the rollout is not in its backtest.
    """
    store = rollout_store(settings)
    view = store.view(rollout_id)
    rollout = view.rollout
    done = next((row for row in view.evidence if row.part == "backtest"), None)
    if done is not None:
        return done.counts
    if rollout.slot != "running" or rollout.current.kind != "backtest":
        return {"requests": 0}
    from pipelines.wiring.backtest import backtest as tables_of
    from pipelines.wiring.backtest import no_data_reason

    tables = tables_of(settings, rollout)
    evidence, requests = fold_backtest(rollout, tables)
    reason = no_data_reason(tables)
    counts: dict[str, Any] = {"requests": requests} | ({"no_data": reason} if reason else {})
    store.put_evidence(EvidenceRow.of(rollout_id, "backtest", 0, evidence, counts=counts))
    return counts


# --- doing ------------------------------------------------------------------------------------------------------------
def advance(settings: Settings, rollout_id: str) -> Effects:
    """Do and confirm every unconfirmed action of the model's decisions, then let waiting rollouts begin (its own, and
    those of models beside it); at last, copy the record into the lake.

    Effects with `done=False` could not be done (a mirror is down); they are tried again by the next call.
    """
    store = rollout_store(settings)
    model = store.load(rollout_id).model
    effects = execute(store, mirrors(settings), model)
    touched = [model]
    for waiting in store.rollouts(slot="waiting", unreadable={}):
        if begin_waiting(settings, waiting.model) is not None:
            effects += execute(store, mirrors(settings), waiting.model)
            touched.append(waiting.model)
    for each in dict.fromkeys(touched):
        record_copy.copy(settings, store, each)
    return effects


def set_routes(settings: Settings, model: str) -> Effects:
    """Do what the model's decisions order in the control database alone: routes and champion, in milliseconds."""
    return execute(rollout_store(settings), {}, model)


def observe_overrides(settings: Settings) -> int:
    """Chain the gateway's new overrides as `observed`, then decide about the rollouts they concern and set the routes.

    Mirrors are left to the next `advance`. Returns how many were new.
    """
    store = rollout_store(settings)
    # Those without a decision, not only new ones: whoever observed them may have died before deciding.
    unsettled = store.overrides(unsettled=True)
    fresh = [row for row in unsettled if row.observed is None]
    for row in fresh:
        store.observe(row.event_id)
    for row in unsettled:
        rollout = _concerned(store, row.model, row.rollout_id, _overrides.decode(row.document).action)
        if rollout is None:
            continue
        view = store.view(rollout.id)
        waiting = [each.event_id for each in unsettled if each.model == row.model]
        decision = decide(view.rollout, standing_of(view), now(settings), overrides=waiting)
        try:
            if not decision.is_wait:
                store.commit(view.rollout, decision)
        except StaleDecisionError:
            continue  # decided by somebody else; the next look sees the override
        execute(store, {}, row.model)
    return len(fresh)


def withdraw_harm(settings: Settings) -> int:
    """Withdraw rollouts whose evidence proves harm, wherever they are: behind a gate that is not up yet, or held.

    A step forward is the gates' business; harm waits for none of them. Sets the route; mirrors are left to the next
    `advance`. Returns how many were withdrawn.
    """
    store, withdrawn = rollout_store(settings), 0
    for rollout in store.rollouts(slot="running", unreadable={}):  # the collector tells of those
        view = store.view(rollout.id)
        standing = standing_of(view)
        if standing.word != "rollback":
            continue
        decision = decide(view.rollout, standing, now(settings), overrides=view.overrides)
        try:
            store.commit(view.rollout, decision)
        except StaleDecisionError:
            continue  # decided by somebody else
        execute(store, {}, rollout.model)
        withdrawn += 1
    return withdrawn


def _concerned(store: RolloutStore, model: str, rollout_id: str | None, action: str) -> Rollout | None:
    """The rollout an override is about: its own while that runs, or the one that made the champion."""
    running = store.rollouts(model, slot="running", unreadable={})
    if running:
        return running[0] if rollout_id in (None, running[0].id) else None
    promoted = [rollout for rollout in store.rollouts(model, unreadable={}) if rollout.status == "promoted"]
    if promoted and action == "champion_to_fallback" and promoted[-1].champion is not None:
        newest = promoted[-1]
        return newest if store.db.champion(model) == newest.challenger else None
    return None


# --- showing ----------------------------------------------------------------------------------------------------------
def load(settings: Settings, rollout_id: str) -> Rollout:
    """The rollout's state. Raises NotFoundError."""
    return rollout_store(settings).load(rollout_id)


def list(  # noqa: A001  # the job's public name
    settings: Settings, model: str | None = None, *, unreadable: dict[str, str] | None = None
) -> Rollouts:
    """Every rollout, oldest first. `unreadable`: as in `RolloutStore.rollouts`."""
    return rollout_store(settings).rollouts(model, unreadable=unreadable)
