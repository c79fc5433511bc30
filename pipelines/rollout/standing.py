"""What a decision is taken from: the judge's word on a rollout, and the moment on both clocks."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pipelines.rollout.conditions import Condition
from pipelines.rollout.state import Cause, Decision, DecisionKind, Rollout

GATE = "gate"


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge says about the current stage, reduced to what decides.

    `word`: `continue` (nothing stands against it), `pause`, `hold`, `rollback`. `metrics` are those that say so and
    `sentence` says it with numbers. `requests` counts the stage's assignments; `proven` whether every proof that
    promotion needs is in, `missing` those that are not. `ready`: the backtest has been run; `no_data`: why it had
    nothing to judge. `conditions` are measured where the stage would end (None: not yet).
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
    no_data: str = ""
    conditions: tuple[Condition, ...] | None = None


class Now(msgspec.Struct, frozen=True):
    """The moment of a decision on both clocks, in microseconds."""

    event_us: int
    wall_us: int


def decision_at(
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
    shown: str = "",
    approvals: tuple[str, ...] = (),
    waive: tuple[str, ...] = (),
    overrides: tuple[str, ...] = (),
) -> Decision:
    """A decision about the rollout as it stands now."""
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
        shown=shown,
        approvals=approvals,
        overrides=overrides,
        policy_digest=rollout.policy_digest,
        evidence_digest=standing.evidence_digest,
        verdicts=standing.verdicts,
        conditions=standing.conditions if standing.conditions is not None else msgspec.UNSET,
    )
