"""The jobs of a rollout: what Airflow's tasks, the command line, the collector and the rehearsal call.

Every job reads, decides by a pure function, appends the decision to the record and returns; `advance` does what the
record orders. All are idempotent: a job about a rollout or stage that is not current does nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipelines.adapters.control_db import control_db
from pipelines.adapters.rollout_store import EvidenceRow, RolloutStore, RolloutView, actions_of, decision_of
from pipelines.contracts.clocks import from_us, wall_us
from pipelines.contracts.errors import NotFoundError, StaleDecisionError, TransientError
from pipelines.contracts.events import Override
from pipelines.contracts.routes import Breaker
from pipelines.rollout import record
from pipelines.rollout.actions import Action, EmitAsset, Notify, SetAlias, SetRoute, TagRelease
from pipelines.rollout.decide import Command, Now, Standing, Verb, begin, decide
from pipelines.rollout.executor import Effect, Mirror, execute
from pipelines.rollout.explainer import explain as explain_decision
from pipelines.rollout.judge import Judgement, judge
from pipelines.rollout.plan_actions import plan_actions, salt_of
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Decision, Plan, Rollout
from pipelines.settings import PROJECT, Settings
from pipelines.stats.evidence import Evidence

if TYPE_CHECKING:
    from pipelines.spec.model import ModelSpec

_overrides = msgspec.json.Decoder(Override)
# `list` is the name of a job here, so the lists of this module's signatures have names of their own.
Verdicts = list[dict[str, Any]]
Effects = list[Effect]
Rollouts = list[Rollout]
_CODE = ("rollout", "stats", "collect")


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


def rollout_store(settings: Settings) -> RolloutStore:
    """The installation's rollouts."""
    return RolloutStore(control_db(settings), code_version())


@cache
def code_version() -> str:
    """First 16 hex digits of SHA-256 over the sources that decide; written into every decision."""
    total = hashlib.sha256()
    for path in sorted(p for part in _CODE for p in (PROJECT / "pipelines" / part).glob("*.py")):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def plan_of(spec: ModelSpec) -> Plan:
    """What a model's spec freezes into a rollout. Raises SpecError or ContractError for a policy that cannot be."""
    listed = [stage.model_dump(exclude_none=True) for stage in spec.rollout.stages]
    policy: dict[str, Any] = dict(spec.rollout.policy)
    minimum = policy.pop("min_event_time", None)
    if minimum is not None:
        from pipelines.spec.durations import parse

        policy["min_event_time_s"] = parse(minimum).us / 1e6
    policy.setdefault("label_maturity_s", spec.labels.maturity.us / 1e6)
    policy.setdefault("slices", [*spec.slices])
    if spec.output.low is not None and spec.output.high is not None:
        policy.setdefault("score_range", [spec.output.low, spec.output.high])
    known = ("name", "share", "requests")
    policy["stages"] = [{key: stage[key] for key in known if key in stage} for stage in listed]
    breaker = spec.rollout.breaker
    return Plan(
        stages=from_spec(listed, spec.rollout.max_wait),
        policy=Policy.parse(policy).to_mapping(),
        approvers=tuple(spec.rollout.approvers),
        breaker=Breaker(window=breaker.window, failures=breaker.failures, timeout_ms=breaker.timeout_ms),
        slice_inputs=tuple(spec.slices),
    )


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
    unknown release, SpecError or ContractError for a plan that cannot be.
    """
    if plan is None:
        from pipelines.spec.loading import load_model

        plan = plan_of(load_model(settings.include_dir, model))
    release = find_release(settings, model, challenger)
    store, now = rollout_store(settings), _now(settings, as_of_us)
    for rollout in store.rollouts(model):
        if rollout.slot != "ended" and rollout.challenger == release:
            return rollout
        if rollout.slot == "waiting":
            replace = Command(verb="replace", actor=actor, reason=f"release {release[:12]} takes its place")
            store.commit(rollout, decide(rollout, Standing(), now, command=replace))
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
            created_event_us=now.event_us,
            created_wall_us=now.wall_us,
            stage_event_us=now.event_us,
            stage_wall_us=now.wall_us,
        )

    queued = store.insert(model, make)
    begin_waiting(settings, model, as_of_us=as_of_us)
    return store.load(queued.id)


def begin_waiting(settings: Settings, model: str, *, as_of_us: int | None = None) -> Rollout | None:
    """Let the model's waiting rollout begin when none runs; returns it, or None when nothing could begin."""
    store = rollout_store(settings)
    waiting = store.rollouts(model, slot="waiting")
    if not waiting or store.rollouts(model, slot="running"):
        return None
    execute(store, {}, model)  # the champion it has to beat must stand before it begins
    rollout = store.refresh_waiting(waiting[0])
    try:
        _, after = store.commit(rollout, begin(rollout, _now(settings, as_of_us), rollout.actor))
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
    standing = standing_of(view)
    decision = decide(rollout, standing, _now(settings, as_of_us), overrides=view.overrides)
    if decision.is_wait:
        return _looked(rollout, standing)
    try:
        line, after = store.commit(rollout, decision)
    except StaleDecisionError:
        return _looked(store.load(rollout_id), standing)
    return msgspec.structs.replace(
        _looked(after, standing), decision=decision, decision_id=line.id, stage=rollout.stage
    )


def standing_of(view: RolloutView) -> Standing:
    """What the judge says of the rollout's current stage; a rollout without live or backtest stage stands still."""
    rollout = view.rollout
    if rollout.champion is None or not rollout.stage:
        return Standing()
    judged = _judged(rollout, view.evidence)
    ready = rollout.current.kind != "backtest" or any(row.part == "backtest" for row in view.evidence)
    word: str = "continue"
    against = judged.stop or judged.pause
    if judged.stop is not None:
        word = judged.stop.action
    elif judged.pause is not None:
        word = "pause"
    return Standing(
        ready=ready,
        word=word,  # type: ignore[arg-type]  # the judge's words are the gate's
        metrics=(against.metric,) if against is not None else (),
        sentence=against.sentence if against is not None else "",
        requests=judged.requests,
        proven=not judged.missing,
        missing=judged.missing,
        verdicts=_verdicts(judged),
        evidence_digest=judged.evidence_digest,
    )


def _judged(rollout: Rollout, rows: Sequence[EvidenceRow]) -> Judgement:
    evidence = Evidence()
    for index, row in enumerate(rows):
        part = Evidence.from_json(row.document)
        evidence = part if index == 0 else evidence + part
    return judge(_policy(rollout.policy_digest, json.dumps(rollout.plan.policy)), evidence, rollout.stage)


@cache
def _policy(_digest: str, document: str) -> Policy:
    return Policy.parse(json.loads(document))


def _verdicts(judged: Judgement) -> Verdicts:
    """Verdicts as the record, the command line and Airflow show them: `verdict` is the word, `reason` the sentence."""
    rows = []
    for verdict in judged.verdicts:
        row = msgspec.to_builtins(verdict)
        rows.append({"metric": row.pop("metric"), "verdict": row.pop("kind"), "reason": row.pop("sentence")} | row)
    return rows


def _looked(rollout: Rollout, standing: Standing) -> Look:
    return Look(
        rollout_id=rollout.id, stage=rollout.stage, current=True, status=rollout.status, verdicts=standing.verdicts
    )


def backtest(settings: Settings, rollout_id: str) -> dict[str, Any]:
    """Run the challenger over logged requests with known labels and store the evidence, once a rollout.

    Returns the number of requests judged; 0 (no champion, nothing logged) is `no_data`, and the rollout goes on.
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
    from pipelines.wiring.training import backtest as tables_of

    tables = tables_of(settings, rollout)
    evidence, requests = fold_backtest(rollout, tables)
    store.put_evidence(
        EvidenceRow(
            rollout_id=rollout_id,
            part="backtest",
            batch=0,
            event_us=evidence.last_us or 0,
            digest=evidence.digest,
            counts={"requests": requests},
            document=evidence.to_json().decode(),
        )
    )
    return {"requests": requests}


def fold_backtest(rollout: Rollout, tables: Mapping[str, Any]) -> tuple[Evidence, int]:
    """Evidence of the backtest's four tables, by the same fold as live traffic; and the number of requests."""
    from pipelines.collect.fold import Fold

    fold = Fold(Policy.parse(rollout.plan.policy))
    given = {name: table for name, table in tables.items() if table is not None and table.num_rows}
    if "assignments" in given:
        fold.add(**given)
    return fold.evidence(), given["assignments"].num_rows if "assignments" in given else 0


# --- what people ask for ----------------------------------------------------------------------------------------------
def approve(settings: Settings, rollout_id: str, actor: str, reason: str = "", *, evidence_digest: str = "") -> Rollout:
    """Let a held rollout, or a first champion, go on. With `evidence_digest` the answer counts for that evidence alone.

    Raises TerminalError when there is nothing to approve or the actor may not, StaleDecisionError on other evidence.
    """
    return command(settings, rollout_id, "approve", actor, reason, evidence_digest=evidence_digest)


def reject(settings: Settings, rollout_id: str, actor: str, reason: str = "", *, evidence_digest: str = "") -> Rollout:
    """Refuse a rollout: it is rolled back, or never begins. Errors as `approve`."""
    return command(settings, rollout_id, "reject", actor, reason, evidence_digest=evidence_digest)


def rollback(settings: Settings, rollout_id: str, actor: str, reason: str = "") -> Rollout:
    """Withdraw the challenger, even after its promotion (while its model's next rollout has not begun)."""
    return command(settings, rollout_id, "rollback", actor, reason)


def pause(settings: Settings, rollout_id: str, actor: str, reason: str = "") -> Rollout:
    """Stop the ramp where it stands; harm is still acted upon."""
    return command(settings, rollout_id, "pause", actor, reason)


def resume(settings: Settings, rollout_id: str, actor: str, reason: str = "") -> Rollout:
    """Go on in the same stage after a pause or hold; its time limit starts anew."""
    return command(settings, rollout_id, "resume", actor, reason)


def skip(settings: Settings, rollout_id: str, actor: str, reason: str) -> Rollout:
    """Leave the current stage without its evidence, on an approver's word."""
    return command(settings, rollout_id, "skip", actor, reason)


def command(
    settings: Settings, rollout_id: str, verb: Verb, actor: str, reason: str = "", *, evidence_digest: str = ""
) -> Rollout:
    """Record a person's decision and return the rollout behind it; `advance` does the rest."""
    store = rollout_store(settings)
    view = store.view(rollout_id)
    asked = Command(verb=verb, actor=actor, reason=reason, evidence_digest=evidence_digest)
    decision = decide(view.rollout, standing_of(view), _now(settings), overrides=view.overrides, command=asked)
    _, after = store.commit(view.rollout, decision)
    return after


# --- doing ------------------------------------------------------------------------------------------------------------
def advance(settings: Settings, rollout_id: str) -> Effects:
    """Do and confirm every unconfirmed action of the model's decisions, then let a waiting rollout begin.

    Effects with `done=False` could not be done (a mirror is down); they are tried again by the next call.
    """
    store = rollout_store(settings)
    model = store.load(rollout_id).model
    effects = execute(store, mirrors(settings), model)
    if begin_waiting(settings, model) is not None:
        effects += execute(store, mirrors(settings), model)
    return effects


def observe_overrides(settings: Settings) -> int:
    """Chain the gateway's new overrides as `observed`, then decide about the rollouts they concern and set the routes.

    Mirrors are left to the next `advance`. Returns how many were new.
    """
    store = rollout_store(settings)
    fresh = store.overrides(unobserved=True)
    for row in fresh:
        store.observe(row.event_id)
    for row in fresh:
        rollout = _concerned(store, row.model, row.rollout_id, _overrides.decode(row.document).action)
        if rollout is None:
            continue
        view = store.view(rollout.id)
        waiting = [each.event_id for each in store.overrides(model=row.model) if each.settled is None]
        decision = decide(view.rollout, standing_of(view), _now(settings), overrides=waiting)
        try:
            if not decision.is_wait:
                store.commit(view.rollout, decision)
        except StaleDecisionError:
            continue  # decided by somebody else; the next look sees the override
        execute(store, {}, row.model)
    return len(fresh)


def _concerned(store: RolloutStore, model: str, rollout_id: str | None, action: str) -> Rollout | None:
    """The rollout an override is about: its own while that runs, or the one that made the champion."""
    running = store.rollouts(model, slot="running")
    if running:
        return running[0] if rollout_id in (None, running[0].id) else None
    promoted = [rollout for rollout in store.rollouts(model) if rollout.status == "promoted"]
    if promoted and action == "champion_to_fallback" and promoted[-1].champion is not None:
        newest = promoted[-1]
        return newest if store.db.champion(model) == newest.challenger else None
    return None


def mirrors(settings: Settings) -> dict[str, Mirror]:
    """Handlers of everything outside the control database, by target."""

    def registry(action: Action, _key: str) -> str:
        assert isinstance(action, TagRelease | SetAlias)
        db = control_db(settings)
        if isinstance(action, TagRelease):
            db.set_release_status(action.model, action.release, action.tags["slipway.status"])
        registered = {row.digest for row in db.releases(action.model) if row.mlflow_run}
        if action.release is not None and action.release not in registered:
            return "not in the registry"
        if not registered:
            return "the model is not in the registry"
        from mlflow.exceptions import MlflowException

        from pipelines.adapters import mlflow_registry

        try:
            if isinstance(action, TagRelease):
                mlflow_registry.tag_release(settings, action.model, action.release, action.tags)
                return f"{len(action.tags)} tags"
            mlflow_registry.set_alias(settings, action.model, action.alias, action.release)
        except MlflowException as error:
            raise TransientError("MLflow", got=str(error), hint="The next advance tries again.") from error
        return f"alias {action.alias}"

    def assets(action: Action, key: str) -> str:
        assert isinstance(action, EmitAsset)
        control_db(settings).emit_asset(key, action.uri, action.extra)
        return action.uri

    def people(action: Action, key: str) -> str:
        assert isinstance(action, Notify)
        return _notify(settings.root / "logs" / "notifications.jsonl", action, key)

    return {"registry": registry, "assets": assets, "people": people}


def _notify(path: Path, action: Notify, key: str) -> str:
    """Append one line to the notification log, once a key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.seek(0)
        mark = json.dumps(key)
        if not any(mark in line for line in log):
            line = {"key": key, "at": from_us(wall_us()).isoformat(), "level": action.level, "text": action.text}
            log.write(json.dumps(line) + "\n")
    return str(path)


# --- showing ----------------------------------------------------------------------------------------------------------
def load(settings: Settings, rollout_id: str) -> Rollout:
    """The rollout's state. Raises NotFoundError."""
    return rollout_store(settings).load(rollout_id)


def list(settings: Settings, model: str | None = None) -> Rollouts:  # noqa: A001
    """Every rollout, oldest first."""
    return rollout_store(settings).rollouts(model)


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
    last: Verdicts = next((each["verdicts"] for each in reversed(decisions) if each.get("verdicts")), [])
    return {
        "id": rollout.id,
        "model": rollout.model,
        "status": rollout.status,
        "stage": rollout.stage,
        "stages": [msgspec.to_builtins(stage) for stage in rollout.stages],
        "champion": rollout.champion,
        "challenger": rollout.challenger,
        "provisional": rollout.provisional,
        "paused": rollout.paused,
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
        "evidence_digest": decision.evidence_digest,
        "verdicts": decision.verdicts,
        "actions": actions,
        "hash": line.hash,
    }


def explain(settings: Settings, rollout_id: str, verb: Verb | None = None, actor: str = "") -> Sequence[str]:
    """The rollout's decisions in words, then what would be decided now (by the gate, or by `verb`), done by nobody."""
    store = rollout_store(settings)
    view = store.view(rollout_id)
    lines = [""][:0]
    for line in store.entries(view.rollout.model, rollout_id):
        decision = decision_of(line)
        if decision is not None:
            lines += [f"[{line.id}]", *explain_decision(decision, actions_of(line))]
    asked = Command(verb=verb, actor=actor) if verb is not None else None
    decision = decide(view.rollout, standing_of(view), _now(settings), overrides=view.overrides, command=asked)
    planned = () if decision.is_wait else plan_actions(view.rollout, decision, f"{view.rollout.model}:next")
    return [*lines, "[now]", *explain_decision(decision, planned)]


def audit(settings: Settings) -> dict[str, Sequence[str]]:
    """Faults of every model's record, by model; empty lists when all chains and anchors hold."""
    store = rollout_store(settings)
    return {model: record.verify(store.entries(model), store.anchors(model)) for model in store.recorded_models()}


def _now(settings: Settings, as_of_us: int | None = None) -> Now:
    """Now on both clocks. A replay that has not ticked yet has no event time: then a caller must give `as_of_us`."""
    return Now(as_of_us if as_of_us is not None else settings.event_clock().event_now_us(), wall_us())
