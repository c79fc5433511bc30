"""What people ask of rollouts, as jobs: recorded like every other decision, and carried out by `rollouts.advance`."""

from __future__ import annotations

from typing import Any

from pipelines.contracts.errors import StaleDecisionError, TerminalError
from pipelines.rollout.commands import Command, Verb, ask_again, is_done_already
from pipelines.rollout.decide import decide
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring.rollout_gate import now, rollout_store, standing_of
from pipelines.wiring.rollout_report import show


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


def skip(settings: Settings, rollout_id: str, actor: str, reason: str, *, stage: str = "") -> Rollout:
    """Leave the current stage (with `stage`: only if it is that one) without its evidence, on an approver's word."""
    return command(settings, rollout_id, "skip", actor, reason, stage=stage)


def command(
    settings: Settings,
    rollout_id: str,
    verb: Verb,
    actor: str,
    reason: str = "",
    *,
    evidence_digest: str = "",
    stage: str = "",
) -> Rollout:
    """Record a person's decision and return the rollout behind it; `advance` does the rest.

    The same command again changes nothing. Raises TerminalError for one that does not fit the rollout or the person,
    StaleDecisionError for one about a stage or evidence that is not current: a held rollout's question is then asked
    anew.
    """
    store = rollout_store(settings)
    view = store.view(rollout_id)
    asked = Command(verb=verb, actor=actor, reason=reason, evidence_digest=evidence_digest, stage=stage)
    standing, moment = standing_of(view), now(settings)
    try:
        decision = decide(view.rollout, standing, moment, overrides=view.overrides, command=asked)
    except (TerminalError, StaleDecisionError):
        if is_done_already(view.rollout, store.newest_decision(rollout_id), asked):
            return view.rollout
        if (again := ask_again(view.rollout, standing, moment)) is not None:
            store.commit(view.rollout, again)
        raise
    _, after = store.commit(view.rollout, decision)
    return after


def question(settings: Settings, rollout_id: str) -> dict[str, Any]:
    """`show` for somebody who is to answer for a held rollout, about the verdicts as they read now.

    Where they have come to read otherwise since it was held, it is held anew for that first: answers that were given
    before are void.
    """
    store = rollout_store(settings)
    view = store.view(rollout_id)
    if (again := ask_again(view.rollout, standing_of(view), now(settings))) is not None:
        try:
            store.commit(view.rollout, again)
        except StaleDecisionError:
            return question(settings, rollout_id)  # decided meanwhile by somebody else
    return show(settings, rollout_id)
