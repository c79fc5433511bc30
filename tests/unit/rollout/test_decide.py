"""The decision table of a rollout."""

from __future__ import annotations

import pytest

from pipelines.contracts.errors import StaleDecisionError, TerminalError
from pipelines.rollout.decide import Command, Standing, begin, decide
from pipelines.rollout.state import apply
from tests.unit.rollout.examples import NEW, NOW, after, done, rollout

HARM = Standing(word="rollback", metrics=("error_rate",), sentence="error_rate: 10 % against 0 %", requests=50)
BROKEN = Standing(
    word="hold", metrics=("sample_ratio",), sentence="sample_ratio: 20 % declared, 60 % seen", requests=50
)
SLOW = Standing(word="pause", metrics=("latency_p50",), sentence="latency_p50: slower", requests=500)


@pytest.mark.parametrize(
    ("stage", "standing", "kind", "following"),
    [
        ("shadow", Standing(requests=99), "continue", None),
        ("shadow", Standing(requests=100), "continue", "canary_10"),
        ("shadow", HARM, "rollback", None),
        ("shadow", BROKEN, "hold", None),
        ("shadow", SLOW, "pause", None),
        ("backtest", Standing(ready=False), "continue", None),
        ("backtest", Standing(ready=True), "continue", "shadow"),
        ("backtest", HARM, "rollback", None),
        ("canary_10", done(), "continue", None),  # min_event_time is not over
        ("canary_50", Standing(requests=500), "continue", None),  # proofs are missing
        ("canary_50", done(), "promote", "bake"),
        ("bake", Standing(requests=49), "continue", None),
        ("bake", Standing(requests=50), "promote", None),
        ("bake", HARM, "rollback", None),
    ],
)
def test_the_stage_and_what_the_judge_says_decide(
    stage: str, standing: Standing, kind: str, following: str | None
) -> None:
    decision = decide(rollout(stage), standing, NOW)
    assert (decision.kind, decision.next_stage) == (kind, following)


def test_a_stage_lasts_at_least_its_minimum_of_event_time() -> None:
    assert decide(rollout("canary_10"), done(), after(days=0.99)).is_wait
    assert decide(rollout("canary_10"), done(), after(days=1)).next_stage == "canary_50"


def test_a_stage_without_enough_requests_in_its_time_is_held_and_one_without_proof_is_inconclusive() -> None:
    late = after(days=3)
    assert decide(rollout("shadow"), Standing(requests=10), late).kind == "hold"
    unproven = decide(rollout("canary_50"), Standing(requests=500, missing=("error_rate",)), late)
    assert (unproven.kind, unproven.metrics) == ("inconclusive", ("error_rate",))
    assert "not proven yet: error_rate" in unproven.reason


def test_harm_outranks_the_end_of_a_stage_and_its_time_limit() -> None:
    assert decide(rollout("canary_50"), HARM, after(days=30)).kind == "rollback"


def test_an_override_of_the_gateway_leads_to_a_rollback_that_names_it() -> None:
    decision = decide(rollout("canary_50"), done(), NOW, overrides=["gw0/0/1/7"])
    assert (decision.kind, decision.cause, decision.overrides) == ("rollback", "override", ("gw0/0/1/7",))


def test_an_override_after_the_promotion_withdraws_it() -> None:
    promoted = rollout("bake", status="promoted")
    assert decide(promoted, Standing(), NOW, overrides=["gw0/0/1/7"]).kind == "rollback"
    assert decide(promoted, Standing(), NOW).is_wait


def test_a_held_rollout_waits_for_a_person_even_when_its_requests_are_in() -> None:
    assert decide(rollout("shadow", status="held"), done(), NOW).is_wait


def test_proven_harm_ends_a_held_rollout_without_waiting_for_the_person() -> None:
    assert decide(rollout("canary_50", status="held"), HARM, NOW).kind == "rollback"


def test_a_first_champion_cannot_be_rolled_back_as_there_is_nothing_to_go_back_to() -> None:
    first = rollout("approval", champion=None, status="promoted")
    with pytest.raises(TerminalError, match="promoted over another champion"):
        decide(first, Standing(), NOW, command=Command(verb="rollback", actor="anna"))
    assert decide(first, Standing(), NOW, overrides=["gw0/0/1/7"]).is_wait


def test_a_pause_is_decided_once_and_ends_when_the_evidence_says_so() -> None:
    paused = rollout("shadow", paused="gate")
    assert decide(paused, SLOW, NOW).is_wait
    assert decide(paused, done(), NOW).next_stage == "canary_10"


def test_a_persons_pause_ends_only_by_a_person_and_harm_is_still_acted_upon() -> None:
    paused = rollout("shadow", paused="anna")
    assert decide(paused, done(), NOW).is_wait
    assert decide(paused, HARM, NOW).kind == "rollback"
    resumed = decide(paused, done(), NOW, command=Command(verb="resume", actor="anna"))
    assert apply(paused, resumed, 9).paused == ""


def test_an_approved_hold_goes_on_to_the_next_stage_and_does_not_come_again() -> None:
    held = rollout("shadow", status="held")
    decision = decide(held, BROKEN, NOW, command=Command(verb="approve", actor="anna", reason="known"))
    assert (decision.kind, decision.next_stage, decision.waive) == ("continue", "canary_10", ("sample_ratio",))
    going = apply(held, decision, 5)
    assert (going.status, going.stage, going.waived) == ("running", "canary_10", ("sample_ratio",))
    assert decide(going, BROKEN, NOW).is_wait


def test_nobody_can_answer_for_proven_harm() -> None:
    held = rollout("shadow", status="held")
    going = apply(held, decide(held, HARM, NOW, command=Command(verb="resume", actor="anna")), 5)
    assert going.waived == ()
    assert decide(going, HARM, NOW).kind == "rollback"


def test_an_approval_counts_for_the_evidence_that_was_shown() -> None:
    held = rollout("shadow", status="held")
    standing = Standing(evidence_digest="new")
    with pytest.raises(StaleDecisionError, match="New evidence came in"):
        decide(held, standing, NOW, command=Command(verb="approve", actor="anna", evidence_digest="old"))
    assert decide(held, standing, NOW, command=Command(verb="approve", actor="anna", evidence_digest="new")).next_stage


@pytest.mark.parametrize("verb", ["approve", "skip"])
def test_only_approvers_let_a_rollout_go_on(verb: str) -> None:
    state = rollout("shadow", status="held" if verb == "approve" else "running")
    with pytest.raises(TerminalError, match=r"got actor mallory; expected one of \['anna', 'ben'\]"):
        decide(state, Standing(), NOW, command=Command(verb=verb, actor="mallory"))


@pytest.mark.parametrize(
    ("status", "verb"),
    [
        ("running", "approve"),
        ("rolled_back", "rollback"),
        ("promoted", "reject"),
        ("running", "resume"),
        ("held", "pause"),
    ],
)
def test_a_command_that_does_not_fit_the_state_is_refused(status: str, verb: str) -> None:
    with pytest.raises(TerminalError, match=f"{verb} m-r2; got a rollout that is"):
        decide(rollout("shadow", status=status), Standing(), NOW, command=Command(verb=verb, actor="anna"))


def test_the_first_champion_needs_a_named_person_and_no_stage() -> None:
    first = rollout("", champion=None, status="waiting")
    begun = apply(first, begin(first, NOW, "test"), 1)
    assert (begun.status, begun.stage) == ("running", "approval")
    assert decide(begun, done(), after(days=90)).is_wait
    approved = decide(begun, Standing(), NOW, command=Command(verb="approve", actor="ben"))
    assert (approved.kind, approved.next_stage) == ("promote", None)
    assert apply(begun, approved, 2).status == "promoted"
    rejected = decide(begun, Standing(), NOW, command=Command(verb="reject", actor="ben"))
    assert apply(begun, rejected, 2).status == "rejected"


def test_the_promotion_into_the_bake_is_provisional_until_its_end() -> None:
    last = rollout("canary_50")
    baking = apply(last, decide(last, done(), NOW), 7)
    assert (baking.stage, baking.provisional, baking.status) == ("bake", True, "running")
    ended = apply(baking, decide(baking, done(), NOW), 8)
    assert (ended.status, ended.provisional, ended.challenger) == ("promoted", False, NEW)
    withdrawn = apply(baking, decide(baking, HARM, NOW), 8)
    assert (withdrawn.status, withdrawn.provisional) == ("rolled_back", False)
