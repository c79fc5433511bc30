"""The acts of the rehearsal as data: what is tried when, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Outcome = Literal["promote", "rollback", "none"]
VARIANTS = ("standard", "repaired-v3", "calm-december", "same-model")


@dataclass(frozen=True, slots=True)
class Act:
    """One act. Times are event time, RFC 3339.

    `spec` names the file of `include/demo` that becomes the model's spec; `train_at` is the training's `as_of`,
    `quiet_until` how far the champion alone is replayed before the rollout starts (its log feeds the backtest), and
    `limit` when the replay gives up. `keep` replays every n-th flight until `quiet_until`. `payload` names what the
    application gets wrong.
    """

    key: str
    title: str
    story: str
    spec: str
    train_at: str
    quiet_from: str
    quiet_until: str
    limit: str
    expect: Outcome
    stopped_in: tuple[str, ...] = ()
    keep: int = 1
    payload: str | None = None


FIRST = Act(
    key="1",
    title="Act 1: the first champion",
    story=(
        "January to June become datasets, features, a training set and a release; offline gates pass, a "
        "named person approves."
    ),
    spec="late_arrival.v1.yaml",
    train_at="2013-07-01",
    quiet_from="2013-07-01",
    quiet_until="2013-07-01",
    limit="2013-07-01",
    expect="promote",
)
PROMOTION = Act(
    key="2",
    title="Act 2: a better model is promoted",
    story=(
        "The challenger reads rolling rates of flights that have already landed. It goes backtest, "
        "shadow, canary, champion, bake."
    ),
    spec="late_arrival.v2.yaml",
    train_at="2013-07-01",
    quiet_from="2013-07-01",
    quiet_until="2013-07-04T12:00:00",
    limit="2013-08-10",
    expect="promote",
)
UNIT_MISTAKE = Act(
    key="3a",
    title="Act 3a: a unit mistake is stopped in shadow",
    story=(
        "The challenger was trained on scheduled minutes; the application sends hours. No client ever gets its answer."
    ),
    spec="late_arrival.v3.yaml",
    train_at="2013-08-10",
    quiet_from="2013-08-10",
    quiet_until="2013-08-10",
    limit="2013-09-05",
    expect="rollback",
    stopped_in=("shadow",),
    payload="hours",
)
DECISION_HARM = Act(
    key="3b",
    title="Act 3b: a harmful decision rule is rolled back in canary",
    story=(
        "The challenger's scores are as good as the champion's, so it passes shadow; its "
        "post-processing serves worse decisions."
    ),
    spec="late_arrival.v4.yaml",
    train_at="2013-09-05",
    quiet_from="2013-09-05",
    quiet_until="2013-09-05",
    limit="2013-10-05",
    expect="rollback",
    stopped_in=("canary_05", "canary_20", "canary_50"),
)
DRIFT = Act(
    key="4",
    title="Act 4: December drifts, a retrained model follows",
    story=(
        "Late flights double in December. The monitor sees it on matured labels, asks for a retraining, "
        "and its rollout starts."
    ),
    spec="late_arrival.v2.yaml",
    train_at="2013-12-10",
    quiet_from="2013-11-01",
    quiet_until="2013-12-10",
    limit="2013-12-31",
    expect="promote",
    keep=4,
)


def acts(variant: str) -> tuple[Act, ...]:
    """The acts of a variant of the story. Raises KeyError for an unknown one."""
    standard = (FIRST, PROMOTION, UNIT_MISTAKE, DECISION_HARM, DRIFT)
    repaired_v3 = replace(UNIT_MISTAKE, expect="promote", stopped_in=(), payload=None, limit="2013-09-05")
    repaired_v4 = replace(DECISION_HARM, expect="promote", stopped_in=(), spec="late_arrival.v4-repaired.yaml")
    calm = replace(
        DRIFT, expect="none", story="December is made of October's days: nothing drifts, nothing is retrained."
    )
    same = replace(
        PROMOTION,
        spec="late_arrival.same.yaml",
        story=("The challenger is the champion's own spec under a new name: it must never be called better."),
    )
    return {
        "standard": standard,
        "repaired-v3": (FIRST, repaired_v3, repaired_v4),
        "calm-december": (FIRST, calm),
        "same-model": (FIRST, same),
    }[variant]
