"""What people ask of a rollout: who may ask it, when it applies, and the decision it becomes.

Letting a rollout go on (`approve`, `skip`, `resume` against the gate's word) takes an approver, or as many different
ones as the plan's `approvals` says; stopping one takes nobody's leave. An answer to a question counts for the evidence
that was shown with it: once the verdicts read otherwise, it is void, and the question is asked anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from pipelines.contracts.errors import StaleDecisionError, TerminalError
from pipelines.rollout.standing import GATE, Now, Standing, decision_at
from pipelines.rollout.state import Decision, DecisionKind, Rollout, consent, said

Verb = Literal["approve", "reject", "rollback", "pause", "resume", "skip", "replace"]


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for.

    `evidence_digest`, when given with a verb that lets the rollout go on, must name the evidence now, or the question's
    while its verdicts still read the same. `stage`, when given, must be where the rollout is.
    """

    verb: Verb
    actor: str
    reason: str = ""
    evidence_digest: str = ""
    stage: str = ""


def obey(rollout: Rollout, standing: Standing, now: Now, overrides: Sequence[str], command: Command) -> Decision:
    """The decision that a person's command becomes.

    Raises TerminalError for one that does not fit the state or the person, StaleDecisionError for one about evidence or
    a stage that is not current.
    """
    _fits(rollout, command)
    verb = command.verb
    lets_go_on = verb in ("approve", "skip") or (verb == "resume" and _answers_for(rollout))
    if lets_go_on:
        _is_about_now(rollout, standing, command)
        if overrides:
            raise TerminalError(
                f"{verb} {rollout.id}",
                got=f"overrides of the gateway: {', '.join(overrides)}",
                expected="none",
                hint="The gateway found the challenger failing: roll back, and start again when it is repaired.",
            )
        approvals = _approvals(rollout, standing, command)
        if verb == "skip" and not command.reason.strip():
            raise TerminalError(
                f"skip {rollout.id}", got="no reason", expected="one: it stands in the place of evidence"
            )
        if len(approvals) < rollout.plan.approvals:
            return _one_of_several(rollout, standing, now, command, approvals)
    else:
        approvals = ()
    following: str | None = None
    waive: tuple[str, ...] = ()
    if verb in ("reject", "rollback", "replace"):
        kind: DecisionKind = "rollback"
    elif verb == "pause":
        kind = "pause"
    elif verb == "resume":
        kind, waive = "continue", _answered(standing)
    else:
        after = rollout.next_stage
        promotes = rollout.current.kind in ("approval", "bake") or after is None or after.kind == "bake"
        kind = "promote" if promotes else "continue"
        following, waive = (after.name if after is not None else None), _answered(standing)
    return decision_at(
        rollout,
        standing,
        now,
        kind,
        "command",
        f"{command.actor}: {command.reason or verb}",
        next_stage=following,
        actor=command.actor,
        command=verb,
        shown=command.evidence_digest,
        approvals=approvals,
        waive=waive,
        overrides=tuple(overrides),
    )


def is_done_already(rollout: Rollout, newest: Decision | None, command: Command) -> bool:
    """Whether what is asked for is how things are: the same command sent twice has one effect.

    `newest` is the last decision about the rollout.
    """
    if command.verb in ("rollback", "reject"):
        return rollout.status in ("rolled_back", "rejected")
    if command.verb == "pause":
        return rollout.status == "running" and rollout.paused not in ("", GATE)
    if newest is None or rollout.status == "held" or (newest.command, newest.actor) != (command.verb, command.actor):
        return False
    # Without a stage a second `skip` means the next one.
    return command.verb != "skip" or (bool(command.stage) and newest.stage == command.stage != rollout.stage)


def ask_again(rollout: Rollout, standing: Standing, now: Now) -> Decision | None:
    """The question of a held rollout, put anew; None while the one that stands is about what is true."""
    asked = rollout.question
    if rollout.status != "held" or (asked is not None and asked.says == said(standing.verdicts)):
        return None
    reason = "new evidence since the question: answers given before it are void, and the question is asked anew"
    return decision_at(rollout, standing, now, "hold", "evidence", reason, metrics=standing.metrics)


def _fits(rollout: Rollout, command: Command) -> None:
    verb = command.verb
    allowed: dict[Verb, bool] = {
        "approve": rollout.status == "held" or (rollout.status == "running" and rollout.current.kind == "approval"),
        "reject": rollout.slot in ("running", "waiting"),
        "rollback": rollout.slot in ("running", "waiting") or rollout.can_go_back,
        "pause": rollout.status == "running" and rollout.paused in ("", GATE),
        "resume": rollout.status == "held" or bool(rollout.paused),
        "skip": rollout.status == "running" and rollout.current.kind != "approval",
        "replace": rollout.status == "waiting",
    }
    if not allowed[verb]:
        where = f"{rollout.status} in {rollout.stage}" if rollout.stage else rollout.status
        where += f", paused by {rollout.paused}" if rollout.paused else ""
        raise TerminalError(f"{verb} {rollout.id}", got=f"a rollout that is {where}", expected=_FITS[verb])
    if command.stage and command.stage != rollout.stage:
        raise StaleDecisionError(
            f"{verb} {rollout.id}", got=f"stage {command.stage}", expected=f"stage {rollout.stage}, where it is"
        )


_FITS: dict[Verb, str] = {
    "approve": "one that is held, or a first champion that waits for approval",
    "reject": "one that runs or waits",
    "rollback": "one that runs, waits, or was promoted over another champion",
    "pause": "one that runs",
    "resume": "one that is held or paused",
    "skip": "one that runs in a stage",
    "replace": "one that waits",
}


def _answers_for(rollout: Rollout) -> bool:
    """Whether to resume is to answer for what the gate says."""
    return rollout.status == "held" or rollout.paused == GATE


def _is_about_now(rollout: Rollout, standing: Standing, command: Command) -> None:
    given, asked = command.evidence_digest, rollout.question
    if not given or given == standing.evidence_digest:
        return
    if asked is not None and given == asked.evidence and asked.says == said(standing.verdicts):
        return
    raise StaleDecisionError(
        f"{command.verb} {rollout.id}",
        got=f"an answer about evidence {given[:12]}",
        expected=f"evidence {standing.evidence_digest[:12]}",
        hint="New evidence came in; look again.",
    )


def _approvals(rollout: Rollout, standing: Standing, command: Command) -> tuple[str, ...]:
    """Who has agreed to this about the question that stands, the actor last. Raises TerminalError for who may not."""
    verb, actor, allowed = command.verb, command.actor, rollout.plan.approvers
    if allowed and actor not in allowed:
        raise TerminalError(f"{verb} {rollout.id}", got=f"actor {actor}", expected=f"one of {list(allowed)}")
    asked = rollout.question
    still = asked is not None and asked.consents_to == consent(verb) and asked.says == said(standing.verdicts)
    before = asked.approvals if asked is not None and still else ()
    if actor in before:
        raise TerminalError(
            f"{verb} {rollout.id}",
            got=f"a second approval by {actor}",
            expected=f"{rollout.plan.approvals} different people",
            hint=f"Ask {' or '.join(name for name in allowed if name not in before) or 'somebody else'}.",
        )
    return (*before, actor)


def _one_of_several(
    rollout: Rollout, standing: Standing, now: Now, command: Command, approvals: tuple[str, ...]
) -> Decision:
    """The first approvals of a plan that asks for more: written down, and the rollout is held until all are in."""
    count = f"{len(approvals)} of {rollout.plan.approvals} approvals"
    return decision_at(
        rollout,
        standing,
        now,
        "hold",
        "command",
        f"{command.actor}: {command.reason or command.verb} ({count})",
        actor=command.actor,
        command=command.verb,
        shown=command.evidence_digest,
        approvals=approvals,
    )


def _answered(standing: Standing) -> tuple[str, ...]:
    """The verdicts a person answers for by letting the rollout go on; harm that is proven can not be answered for."""
    return standing.metrics if standing.word in ("hold", "pause") else ()
