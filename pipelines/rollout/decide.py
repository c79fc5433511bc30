"""What to do about a rollout now: one pure function over its state, the judge's word, the clocks and what people said.

The rules, first match wins: a person's command; an override of the gateway; a stage that only a person may leave;
a verdict against the challenger; the stage's end; the stage's time limit; else wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from pipelines.contracts.errors import StaleDecisionError, TerminalError
from pipelines.rollout.stages import Stage
from pipelines.rollout.state import Cause, Decision, DecisionKind, Rollout

Verb = Literal["approve", "reject", "rollback", "pause", "resume", "skip", "replace"]
GATE = "gate"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge says about the current stage, reduced to what decides.

    `word`: `continue` (nothing stands against it), `pause`, `hold`, `rollback`. `metrics` are those that say so and
    `sentence` says it with numbers. `requests` counts the stage's assignments; `proven` whether every proof that
    promotion needs is in, `missing` those that are not. `ready`: the backtest has been run.
    """

    ready: bool = True

    word: Literal["continue", "pause", "hold", "rollback"] = "continue"
    metrics: tuple[str, ...] = ()
    sentence: str = ""
    requests: int = 0
    proven: bool = False
    missing: tuple[str, ...] = ()
    verdicts: list[dict[str, Any]] = []
    evidence_digest: str = ""


class Now(msgspec.Struct, frozen=True):
    """The moment of a decision on both clocks, in microseconds."""

    event_us: int
    wall_us: int


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for. `evidence_digest`, when given, must be that of the evidence now (else it is stale)."""

    verb: Verb
    actor: str
    reason: str = ""
    evidence_digest: str = ""


def decide(
    rollout: Rollout,
    standing: Standing,
    now: Now,
    *,
    overrides: Sequence[str] = (),
    command: Command | None = None,
) -> Decision:
    """The decision about `rollout` at `now`; `Decision.is_wait` when nothing changes.

    `overrides` are the ids of the gateway's overrides of this rollout that no decision has dealt with.
    Raises TerminalError for a command that does not fit the state, StaleDecisionError for one on old evidence.
    """
    if command is not None:
        return _obey(rollout, standing, now, overrides, command)
    if overrides and (rollout.slot == "running" or _can_go_back(rollout)):
        reason = f"the gateway reduced exposure on its own ({', '.join(overrides)})"
        return _decision(rollout, standing, now, "rollback", "override", reason, overrides=tuple(overrides))
    if rollout.slot != "running":
        return _decision(rollout, standing, now, "continue", "verdict", f"the rollout is {rollout.status}")
    if rollout.status == "held":
        if standing.word == "rollback":  # a person may be long in coming; proven harm does not wait
            return _decision(rollout, standing, now, "rollback", "verdict", standing.sentence, metrics=standing.metrics)
        return _decision(rollout, standing, now, "continue", "verdict", "held until a person decides")
    stage = rollout.current
    if stage.kind == "approval":
        return _decision(
            rollout, standing, now, "continue", "verdict", "a named person has to approve the first champion"
        )
    return (
        _against(rollout, standing, now)
        or _stage_end(rollout, stage, standing, now)
        or _time_limit(rollout, stage, standing, now)
        or _decision(rollout, standing, now, "continue", "verdict", _progress(stage, standing))
    )


def begin(rollout: Rollout, now: Now, actor: str) -> Decision:
    """The decision that lets a waiting rollout begin its first stage."""
    first = rollout.stages[0]
    asks = ". There is no champion yet: a named person has to approve" if first.kind == "approval" else ""
    reason = f"release {rollout.challenger[:12]} starts its way at {first.name}{asks}"
    return _decision(rollout, Standing(), now, "continue", "started", reason, next_stage=first.name, actor=actor)


def _against(rollout: Rollout, standing: Standing, now: Now) -> Decision | None:
    """Rollback, hold or pause by verdict. A hold or pause that a person has answered for does not come again."""
    if standing.word == "rollback":
        return _decision(rollout, standing, now, "rollback", "verdict", standing.sentence, metrics=standing.metrics)
    if standing.metrics and set(standing.metrics) <= set(rollout.waived):
        return None
    if standing.word == "hold":
        return _decision(rollout, standing, now, "hold", "verdict", standing.sentence, metrics=standing.metrics)
    if standing.word == "pause" and not rollout.paused:
        return _decision(rollout, standing, now, "pause", "verdict", standing.sentence, metrics=standing.metrics)
    return None


def _stage_end(rollout: Rollout, stage: Stage, standing: Standing, now: Now) -> Decision | None:
    """On to the next stage when the stage's requests and time are in; promotion also needs every proof."""
    waived = standing.metrics and set(standing.metrics) <= set(rollout.waived)
    if rollout.paused not in ("", GATE) or (standing.word == "pause" and not waived):
        return None
    if not standing.ready or (stage.kind != "backtest" and standing.requests < stage.requests):
        return None
    if (
        stage.min_event_time is not None
        and _elapsed(rollout, stage.min_event_time.clock, now) < stage.min_event_time.us
    ):
        return None
    following = rollout.next_stage
    done = f"{stage.name} has its {standing.requests} requests and nothing stands against the challenger"
    if stage.kind == "backtest" and not standing.requests:
        done = "no logged requests with known labels to run the backtest on"
    if following is not None and following.kind != "bake":
        return _decision(
            rollout,
            standing,
            now,
            "continue",
            "stage_done",
            f"{done}; on to {following.name}",
            next_stage=following.name,
        )
    if stage.kind != "bake" and not standing.proven:
        return None
    proofs = "it baked without a verdict against it" if stage.kind == "bake" else "every proof is in"
    return _decision(
        rollout,
        standing,
        now,
        "promote",
        "stage_done",
        f"{done}; {proofs}",
        next_stage=following.name if following is not None else None,
    )


def _time_limit(rollout: Rollout, stage: Stage, standing: Standing, now: Now) -> Decision | None:
    """A stage that ran out of time: `inconclusive` when it had its requests, else `hold`."""
    if stage.max_wait is None or _elapsed(rollout, stage.max_wait.clock, now) < stage.max_wait.us:
        return None
    if "max_wait" in rollout.waived:
        return None
    if standing.requests >= stage.requests:
        missing = ", ".join(standing.missing) or "nothing"
        reason = f"{stage.name} is over after {stage.max_wait}; not proven yet: {missing}"
        return _decision(rollout, standing, now, "inconclusive", "max_wait", reason, metrics=standing.missing)
    reason = f"{stage.name} got {standing.requests} of {stage.requests} requests within {stage.max_wait}"
    return _decision(rollout, standing, now, "hold", "max_wait", reason)


def _obey(rollout: Rollout, standing: Standing, now: Now, overrides: Sequence[str], command: Command) -> Decision:
    verb = command.verb
    if command.evidence_digest and command.evidence_digest != standing.evidence_digest:
        raise StaleDecisionError(
            f"{verb} {rollout.id}",
            got=f"an answer about evidence {command.evidence_digest[:12]}",
            expected=f"evidence {standing.evidence_digest[:12]}",
            hint="New evidence came in; look again.",
        )
    allowed: dict[Verb, bool] = {
        "approve": rollout.status == "held" or (rollout.status == "running" and rollout.current.kind == "approval"),
        "reject": rollout.slot in ("running", "waiting"),
        "rollback": rollout.slot in ("running", "waiting") or _can_go_back(rollout),
        "pause": rollout.status == "running" and not rollout.paused,
        "resume": rollout.status == "held" or bool(rollout.paused),
        "skip": rollout.status == "running" and rollout.current.kind != "approval",
        "replace": rollout.status == "waiting",
    }
    if not allowed[verb]:
        where = f"{rollout.status} in {rollout.stage}" if rollout.stage else rollout.status
        raise TerminalError(f"{verb} {rollout.id}", got=f"a rollout that is {where}", expected=_FITS[verb])
    if overrides and verb in ("approve", "skip", "resume"):
        raise TerminalError(
            f"{verb} {rollout.id}",
            got=f"overrides of the gateway: {', '.join(overrides)}",
            expected="none",
            hint="The gateway found the challenger failing: roll back, and start again when it is repaired.",
        )
    if verb in ("approve", "skip") and rollout.plan.approvers and command.actor not in rollout.plan.approvers:
        raise TerminalError(
            f"{verb} {rollout.id}", got=f"actor {command.actor}", expected=f"one of {list(rollout.plan.approvers)}"
        )
    reason = f"{command.actor}: {command.reason or verb}"
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
    return _decision(
        rollout,
        standing,
        now,
        kind,
        "command",
        reason,
        next_stage=following,
        actor=command.actor,
        command=verb,
        waive=waive,
        overrides=tuple(overrides),
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


def _answered(standing: Standing) -> tuple[str, ...]:
    """The verdicts a person answers for by letting the rollout go on; harm that is proven can not be answered for."""
    return standing.metrics if standing.word in ("hold", "pause") else ()


def _can_go_back(rollout: Rollout) -> bool:
    """Whether it was promoted over a champion that can answer again."""
    return rollout.status == "promoted" and rollout.champion is not None


def _elapsed(rollout: Rollout, clock: str, now: Now) -> int:
    if clock == "wall":
        return now.wall_us - rollout.stage_wall_us
    return now.event_us - rollout.stage_event_us


def _progress(stage: Stage, standing: Standing) -> str:
    missing = f"; not proven yet: {', '.join(standing.missing)}" if standing.missing else ""
    return f"{stage.name} has {standing.requests} of {stage.requests} requests{missing}"


def _decision(
    rollout: Rollout,
    standing: Standing,
    now: Now,
    kind: DecisionKind,
    cause: Cause,
    reason: str,
    *,
    next_stage: str | None = None,
    metrics: tuple[str, ...] = (),
    actor: str = GATE,
    command: str = "",
    waive: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
) -> Decision:
    return Decision(
        model=rollout.model,
        rollout_id=rollout.id,
        stage=rollout.stage,
        kind=kind,
        cause=cause,
        reason=reason,
        actor=actor,
        event_us=now.event_us,
        wall_us=now.wall_us,
        next_stage=next_stage,
        metrics=metrics,
        waive=waive,
        command=command,
        overrides=overrides,
        policy_digest=rollout.policy_digest,
        evidence_digest=standing.evidence_digest,
        verdicts=standing.verdicts,
    )
