"""What to do about a rollout now: one pure function over its state, the judge's word, the clocks and what people said.

The rules, first match wins: a person's command; an override of the gateway; a stage that only a person may leave;
a verdict against the challenger; the stage's end, unless a condition stands against it; the stage's time limit; else
wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.rollout import conditions
from pipelines.rollout.commands import Command, obey
from pipelines.rollout.stages import Stage
from pipelines.rollout.standing import GATE, Now, Standing, decision_at
from pipelines.rollout.state import Decision, Rollout

__all__ = ["Command", "Now", "Standing", "begin", "decide"]


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
        return obey(rollout, standing, now, overrides, command)
    if overrides and (rollout.slot == "running" or rollout.can_go_back):
        reason = f"the gateway reduced exposure on its own ({', '.join(overrides)})"
        return decision_at(rollout, standing, now, "rollback", "override", reason, overrides=tuple(overrides))
    if rollout.slot != "running":
        return decision_at(rollout, standing, now, "continue", "verdict", f"the rollout is {rollout.status}")
    if rollout.status == "held":
        if standing.word == "rollback":  # a person may be long in coming; proven harm does not wait
            return decision_at(
                rollout, standing, now, "rollback", "verdict", standing.sentence, metrics=standing.metrics
            )
        return decision_at(rollout, standing, now, "continue", "verdict", "held until a person decides")
    stage = rollout.current
    if stage.kind == "approval":
        return decision_at(
            rollout, standing, now, "continue", "verdict", "a named person has to approve the first champion"
        )
    return (
        _against(rollout, standing, now)
        or _conditioned(rollout, standing, now, _stage_end(rollout, stage, standing, now))
        or _time_limit(rollout, stage, standing, now)
        or decision_at(rollout, standing, now, "continue", "verdict", _progress(stage, standing))
    )


def begin(rollout: Rollout, now: Now, actor: str) -> Decision:
    """The decision that lets a waiting rollout begin its first stage."""
    first = rollout.stages[0]
    asks = ""
    if first.kind == "approval":
        skipped = ", ".join(stage.name for stage in rollout.plan.stages)
        asks = f". There is no champion yet: {skipped} are not applicable, a named person has to approve"
    reason = f"release {rollout.challenger[:12]} starts its way at {first.name}{asks}"
    return decision_at(rollout, Standing(), now, "continue", "started", reason, next_stage=first.name, actor=actor)


def _against(rollout: Rollout, standing: Standing, now: Now) -> Decision | None:
    """Rollback, hold or pause by verdict. A hold or pause that a person has answered for does not come again."""
    if standing.word == "rollback":
        return decision_at(rollout, standing, now, "rollback", "verdict", standing.sentence, metrics=standing.metrics)
    if standing.metrics and set(standing.metrics) <= set(rollout.waived):
        return None
    if standing.word == "hold":
        return decision_at(rollout, standing, now, "hold", "verdict", standing.sentence, metrics=standing.metrics)
    if standing.word == "pause" and not rollout.paused:
        return decision_at(rollout, standing, now, "pause", "verdict", standing.sentence, metrics=standing.metrics)
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
        done = f"no_data for the backtest: {standing.no_data or 'no logged requests with known labels'}"
    if following is not None and following.kind != "bake":
        return decision_at(
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
    return decision_at(
        rollout,
        standing,
        now,
        "promote",
        "stage_done",
        f"{done}; {proofs}",
        next_stage=following.name if following is not None else None,
    )


def _conditioned(rollout: Rollout, standing: Standing, now: Now, end: Decision | None) -> Decision | None:
    """The stage's end, if nothing measured stands against it; else a pause that ends by itself, or a hold."""
    against = standing.conditions or ()
    if end is None or not conditions.unmet(against):
        return end
    names = tuple(each.name for each in conditions.unmet(against))
    said = f"{rollout.stage} is done, but {conditions.text(against)}"
    if conditions.hold(against):
        return decision_at(rollout, standing, now, "hold", "condition", said, metrics=names)
    if rollout.paused:
        return None
    return decision_at(rollout, standing, now, "pause", "condition", said, metrics=names)


def _time_limit(rollout: Rollout, stage: Stage, standing: Standing, now: Now) -> Decision | None:
    """A stage that ran out of time: `inconclusive` when it had its requests, else `hold`."""
    if stage.max_wait is None or _elapsed(rollout, stage.max_wait.clock, now) < stage.max_wait.us:
        return None
    if "max_wait" in rollout.waived:
        return None
    if standing.requests >= stage.requests:
        missing = ", ".join(standing.missing) or "nothing"
        reason = f"{stage.name} is over after {stage.max_wait}; not proven yet: {missing}"
        if against := conditions.text(standing.conditions or ()):
            reason = f"{stage.name} is over after {stage.max_wait}; {against}"
        return decision_at(rollout, standing, now, "inconclusive", "max_wait", reason, metrics=standing.missing)
    reason = f"{stage.name} got {standing.requests} of {stage.requests} requests within {stage.max_wait}"
    return decision_at(rollout, standing, now, "hold", "max_wait", reason)


def _elapsed(rollout: Rollout, clock: str, now: Now) -> int:
    if clock == "wall":
        return now.wall_us - rollout.stage_wall_us
    return now.event_us - rollout.stage_event_us


def _progress(stage: Stage, standing: Standing) -> str:
    missing = f"; not proven yet: {', '.join(standing.missing)}" if standing.missing else ""
    return f"{stage.name} has {standing.requests} of {stage.requests} requests{missing}"
