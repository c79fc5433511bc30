"""A rollout's persisted state, and how a decision changes it.

`status` says what is true:

    waiting      another rollout of the model runs; a newer one would replace this one
    running      its stage's route stands (or is being set) and evidence comes in
    held         the ramp is stopped where it is; a person has been called
    promoted     the challenger is champion
    rolled_back  the champion it started from answers alone
    rejected     a person refused it before it was exposed
    replaced     a newer rollout took its place in the queue
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.routes import Breaker
from pipelines.rollout.actions import Level
from pipelines.rollout.conditions import Condition
from pipelines.rollout.feature_terms import FeatureTerms
from pipelines.rollout.stages import APPROVAL, Stage

Status = Literal["waiting", "running", "held", "promoted", "rolled_back", "rejected", "replaced"]
Slot = Literal["running", "waiting", "ended"]
DecisionKind = Literal["continue", "pause", "promote", "rollback", "hold", "inconclusive"]
Cause = Literal[
    "started",  # the rollout got its turn
    "stage_done",  # the stage's requests are in and nothing stands against the next
    "verdict",  # a metric decided
    "max_wait",  # the stage's time limit is over
    "condition",  # features are stale, or not what the lake has
    "override",  # the gateway has reduced exposure
    "command",  # a person
    "evidence",  # what a person was asked about reads otherwise now
]


class Recipient(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of decisions: `to` is a webhook's URL or an e-mail address. Level `page`: of pages alone."""

    by: Literal["webhook", "email"]
    to: str
    level: Level = "info"

    def hears(self, level: Level) -> bool:
        """Whether a message of this level is for it."""
        return self.level in ("info", level)


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """What `requests: auto` came to: the stages' lengths, the rates behind them, and where those are from."""

    requests: dict[str, int] = {}
    rates: dict[str, Any] = {}
    source: str = ""


class Feeds(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is given this one's score as its `input`: at least so many of its requests are tried with the
    challenger's score, and judged by its own `policy` (a document of `slipway-gate/1`).
    """

    model: str
    input: str
    requests: int
    policy: dict[str, Any]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is frozen into a rollout when it starts; a later edit of the spec does not touch it.

    `policy` is a document of `slipway-gate/1`; an empty `approvers` lets anyone approve. `approvals`: how many
    different people have to. `fed_by`: the models whose scores reach this one, however many models lie between.
    `feeds`: the models that are given its score as an input. `features`: the terms of the views that its releases read
    (None in plans of before they were frozen).
    """

    stages: tuple[Stage, ...]
    policy: dict[str, Any]
    approvers: tuple[str, ...] = ()
    breaker: Breaker = Breaker()
    slice_inputs: tuple[str, ...] = ()
    approvals: int = 1
    notify: tuple[Recipient, ...] = ()
    payload_ppm: int = PPM
    settled: Settled = Settled()
    fed_by: tuple[str, ...] = ()
    features: FeatureTerms | None = None
    feeds: tuple[Feeds, ...] = ()

    def digest(self) -> str:
        """SHA-256 of everything the gate depends on."""
        built = msgspec.to_builtins(self)
        # What plans frozen by an older version did not have leaves their digests as they are, while it is at rest.
        return digest({name: value for name, value in built.items() if _LATER.get(name, ...) != value})


_LATER: dict[str, Any] = {
    "approvals": 1,
    "notify": (),
    "payload_ppm": PPM,
    "settled": msgspec.to_builtins(Settled()),
    "fed_by": (),
    "features": None,
    "feeds": (),
}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a held rollout's person is asked about.

    `evidence` is the digest that was shown, `says` a digest of the verdicts' words then: an answer counts while they
    read the same. `approvals`: who has agreed so far, and `consents_to` what (of a plan that asks for several).
    """

    evidence: str
    says: str
    consents_to: str = ""
    approvals: tuple[str, ...] = ()


def said(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Digest of what the verdicts say, without their numbers: more of the same evidence leaves it as it is."""
    return digest(sorted([row["metric"], row["slice"] or "", row["verdict"]] for row in verdicts))


def consent(verb: str) -> str:
    """What a command that lets a rollout go on agrees to: `skip` asks for the same step as `approve`."""
    return "approve" if verb == "skip" else verb


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """One challenger's way. `champion` is the release it has to beat (None: the model has none yet).

    Times are microseconds; `stage_event_us` and `stage_wall_us` are when the stage began on each clock.
    `paused` names who stopped the ramp (`gate` or a person); `waived` the metrics a person has answered for.
    `question` is what a person is asked while it is held. `revision` is the number of the last decision applied, and
    guards every update.
    """

    id: str
    model: str
    challenger: str
    champion: str | None
    plan: Plan
    policy_digest: str
    salt: str
    status: Status
    stage: str
    provisional: bool = False
    paused: str = ""
    waived: tuple[str, ...] = ()
    actor: str
    created_event_us: int
    created_wall_us: int
    stage_event_us: int
    stage_wall_us: int
    revision: int = 0
    question: Question | None = None

    @property
    def slot(self) -> Slot:
        """Which of the model's places it takes: at most one runs and one waits."""
        if self.status in ("running", "held"):
            return "running"
        return "waiting" if self.status == "waiting" else "ended"

    def touches(self, other: Rollout) -> bool:
        """Whether both may not run at once: they are of one model, or one's model feeds the other's."""
        feeds = other.model in self.plan.fed_by or self.model in other.plan.fed_by
        return feeds or self.model == other.model

    @property
    def can_go_back(self) -> bool:
        """Whether it was promoted over a champion that can answer again."""
        return self.status == "promoted" and self.champion is not None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that apply: without a champion, only the approval by a person does."""
        if self.champion is None:
            return (Stage(name=APPROVAL, kind="approval"),)
        return self.plan.stages

    def stage_named(self, name: str) -> Stage:
        """The stage called `name`. Raises NotFoundError with the names there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise NotFoundError(f"stage of rollout {self.id}", got=name, expected=[stage.name for stage in self.stages])

    @property
    def current(self) -> Stage:
        """The stage it is in."""
        return self.stage_named(self.stage)

    @property
    def next_stage(self) -> Stage | None:
        """The stage behind the current one; None when it is the last."""
        names = [stage.name for stage in self.stages]
        index = names.index(self.stage) + 1
        return self.stages[index] if index < len(names) else None


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about a rollout, and from what. `next_stage` is set when the rollout moves on.

    `metrics` names what decided; `overrides` the gateway's overrides that it deals with (by event id). Of a person's
    decision: `shown` is the digest of the evidence that was answered, `approvals` who has agreed to it by then.
    """

    model: str
    rollout_id: str
    stage: str
    kind: DecisionKind
    cause: Cause
    reason: str
    actor: str
    event_us: int
    wall_us: int
    next_stage: str | None = None
    metrics: tuple[str, ...] = ()
    waive: tuple[str, ...] = ()
    command: str = ""
    shown: str = ""
    approvals: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    policy_digest: str = ""
    evidence_digest: str = ""
    verdicts: list[dict[str, Any]] = []
    conditions: tuple[Condition, ...] | msgspec.UnsetType = msgspec.UNSET
    """What was measured beside the evidence, where a stage would end; unset in decisions that did not need it."""

    @property
    def is_wait(self) -> bool:
        """Whether nothing changes: such a decision is not written down."""
        return self.kind == "continue" and self.next_stage is None and not self.command


def apply(rollout: Rollout, decision: Decision, n: int) -> Rollout:
    """The rollout after the decision that has number `n` in its model's record."""
    changes: dict[str, Any] = {"revision": n, "status": _status_after(rollout, decision)}
    changes["question"] = _question_after(rollout, decision) if changes["status"] == "held" else None
    if decision.kind == "pause":
        changes["paused"] = decision.actor
    elif decision.kind not in ("hold", "inconclusive"):
        changes["paused"] = ""
    if decision.next_stage is not None:
        changes |= {"stage": decision.next_stage, "provisional": rollout.provisional or decision.kind == "promote"}
    if decision.next_stage is not None or decision.command == "resume":
        changes |= {"stage_event_us": decision.event_us, "stage_wall_us": decision.wall_us}
    if changes["status"] in ("promoted", "rolled_back", "rejected", "replaced"):
        changes["provisional"] = False
    if decision.waive:
        changes["waived"] = tuple(sorted({*rollout.waived, *decision.waive}))
    return msgspec.structs.replace(rollout, **changes)


def _question_after(rollout: Rollout, decision: Decision) -> Question:
    """What a person is asked: the question that stood, while the verdicts read the same, else a new one."""
    says, before = said(decision.verdicts), rollout.question
    same = before is not None and before.says == says
    return Question(
        evidence=before.evidence if before is not None and same else decision.evidence_digest,
        says=says,
        consents_to=consent(decision.command),
        approvals=decision.approvals,
    )


def _status_after(rollout: Rollout, decision: Decision) -> Status:
    match decision.kind:
        case "promote" if decision.next_stage is None:
            return "promoted"
        case "rollback" if decision.command == "replace":
            return "replaced"
        case "rollback":
            was_live = rollout.champion is not None and rollout.status != "waiting"
            return "rolled_back" if was_live else "rejected"
        case "hold" | "inconclusive":
            return "held"
        case "pause":
            return rollout.status
    return "running"
