"""What people may ask of a rollout, how many have to agree, and which evidence an answer counts for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.canonical import digest
from pipelines.contracts.errors import StaleDecisionError, TerminalError
from pipelines.rollout.commands import Command, Verb, ask_again, is_done_already
from pipelines.rollout.decide import decide
from pipelines.rollout.standing import GATE, Standing
from pipelines.rollout.state import Decision, Rollout, apply
from tests.unit.rollout.examples import NOW, PLAN, after, rollout

TWO = msgspec.structs.replace(PLAN, approvals=2, approvers=("anna", "ben", "cleo"))


def saying(word: str, evidence: str, n: int = 1) -> Standing:
    """A judge who says `word` of one metric on this evidence; `n` is a number beside it."""
    row = {"metric": "error_rate", "slice": None, "verdict": word, "reason": f"{n} seen"}
    return Standing(evidence_digest=evidence, verdicts=[row])


def does(state: Rollout, standing: Standing, verb: Verb, actor: str, **asked: Any) -> tuple[Decision, Rollout]:
    """The decision of a command, and the rollout after it."""
    command = Command(verb=verb, actor=actor, reason="because", **asked)
    decision = decide(state, standing, NOW, command=command)
    return decision, apply(state, decision, state.revision + 1)


def held(evidence: str = "e1", **changes: Any) -> Rollout:
    """A rollout that its time limit has held on this evidence."""
    late = decide(rollout("shadow", **changes), saying("inconclusive", evidence), after(days=9))
    return apply(rollout("shadow", **changes), late, 7)


def test_a_hold_asks_about_the_evidence_it_was_taken_on() -> None:
    assert held("e1").question is not None
    assert held("e1").question.evidence == "e1"


def test_an_answer_counts_while_the_verdicts_read_as_they_were_shown() -> None:
    more_of_the_same = saying("inconclusive", "e2", n=2)
    decision, going = does(held("e1"), more_of_the_same, "approve", "anna", evidence_digest="e1")
    assert (decision.next_stage, decision.shown, decision.evidence_digest) == ("canary_10", "e1", "e2")
    assert going.question is None


@pytest.mark.parametrize("verb", ["approve", "resume"])
def test_an_answer_to_verdicts_that_read_otherwise_now_is_void(verb: Verb) -> None:
    with pytest.raises(StaleDecisionError, match="New evidence came in"):
        does(held("e1"), saying("pass", "e2"), verb, "anna", evidence_digest="e1")


def test_a_rejection_counts_whatever_was_shown() -> None:
    decision, _ = does(held("e1"), saying("pass", "e2"), "reject", "anna", evidence_digest="e1")
    assert decision.kind == "rollback"


def test_the_question_is_asked_anew_when_the_verdicts_read_otherwise_and_not_before() -> None:
    assert ask_again(held("e1"), saying("inconclusive", "e2", n=9), NOW) is None
    again = ask_again(held("e1"), saying("pass", "e2"), NOW)
    assert again is not None
    anew = apply(held("e1"), again, 8)
    assert (anew.status, anew.question.evidence) == ("held", "e2")
    assert ask_again(anew, saying("pass", "e3"), NOW) is None
    assert ask_again(rollout("shadow"), saying("pass", "e2"), NOW) is None


@pytest.mark.parametrize("verb", ["approve", "resume"])
def test_two_different_people_have_to_agree_where_the_plan_says_so(verb: Verb) -> None:
    state, standing = held("e1", plan=TWO), saying("inconclusive", "e1")
    first, state = does(state, standing, verb, "anna")
    assert (first.kind, state.status, state.question.approvals) == ("hold", "held", ("anna",))
    with pytest.raises(TerminalError, match="a second approval by anna; expected 2 different people"):
        does(state, standing, verb, "anna")
    second, state = does(state, standing, verb, "ben", evidence_digest="e1")
    assert (second.kind, second.approvals, state.status) == ("continue", ("anna", "ben"), "running")


def test_new_evidence_voids_an_approval_that_was_given_before_it() -> None:
    _, state = does(held("e1", plan=TWO), saying("inconclusive", "e1"), "approve", "anna")
    decision, state = does(state, saying("pass", "e2"), "approve", "ben")
    assert (decision.kind, decision.approvals) == ("hold", ("ben",))


def test_agreeing_to_something_else_starts_the_count_anew() -> None:
    standing = saying("inconclusive", "e1")
    _, state = does(held("e1", plan=TWO), standing, "resume", "anna")
    decision, _ = does(state, standing, "approve", "ben")
    assert (decision.kind, decision.approvals) == ("hold", ("ben",))


def test_a_skip_holds_the_rollout_until_the_second_person_approves() -> None:
    standing = saying("inconclusive", "e1")
    skipped, state = does(rollout("shadow", plan=TWO), standing, "skip", "anna")
    assert (skipped.kind, state.status) == ("hold", "held")
    agreed, state = does(state, standing, "approve", "ben")
    assert (agreed.next_stage, state.status) == ("canary_10", "running")


def test_a_first_champion_needs_both_approvals_too() -> None:
    state = rollout("approval", champion=None, plan=TWO)
    _, state = does(state, Standing(), "approve", "anna")
    assert state.status == "held"
    decision, state = does(state, Standing(), "approve", "cleo")
    assert (decision.kind, state.status) == ("promote", "promoted")


@given(st.lists(st.tuples(st.sampled_from(["approve", "resume", "skip"]), st.sampled_from(TWO.approvers)), max_size=6))
def test_no_order_of_answers_lets_it_go_on_by_the_word_of_one(answers: list[tuple[Verb, str]]) -> None:
    state, standing = held("e1", plan=TWO), saying("inconclusive", "e1")
    for verb, actor in answers:
        if state.status != "held":
            break
        try:
            decision, state = does(state, standing, verb, actor)
        except TerminalError:
            continue
        if state.status == "running":
            assert len(set(decision.approvals)) == 2


def test_who_takes_a_hold_back_must_be_an_approver_and_who_takes_their_own_pause_back_need_not() -> None:
    with pytest.raises(TerminalError, match="got actor dora"):
        does(held(), saying("inconclusive", "e1"), "resume", "dora")
    with pytest.raises(TerminalError, match="got actor dora"):
        does(rollout("shadow", paused=GATE), Standing(), "resume", "dora")
    _, state = does(rollout("shadow", paused="dora"), Standing(), "resume", "dora")
    assert state.paused == ""


def test_a_person_may_pause_what_the_gate_has_paused() -> None:
    _, state = does(rollout("shadow", paused=GATE), Standing(), "pause", "dora")
    assert state.paused == "dora"


def test_a_skip_without_a_reason_is_refused() -> None:
    with pytest.raises(TerminalError, match="got no reason"):
        decide(rollout("shadow"), Standing(), NOW, command=Command(verb="skip", actor="anna", reason=" "))


def test_a_command_about_another_stage_is_refused() -> None:
    with pytest.raises(StaleDecisionError, match="got stage shadow; expected stage canary_10"):
        does(rollout("canary_10"), Standing(), "skip", "anna", stage="shadow")


@pytest.mark.parametrize(
    ("before", "verb", "asked"),
    [
        (rollout("shadow"), "rollback", {}),
        (rollout("shadow"), "reject", {}),
        (rollout("shadow"), "pause", {}),
        (rollout("shadow", paused="dora"), "resume", {}),
        (held(), "approve", {}),
        (rollout("shadow"), "skip", {"stage": "shadow"}),
    ],
)
def test_what_is_asked_twice_is_done_once(before: Rollout, verb: Verb, asked: dict[str, str]) -> None:
    standing = saying("inconclusive", "e1")
    decision, state = does(before, standing, verb, "anna", **asked)
    command = Command(verb=verb, actor="anna", reason="because", **asked)
    assert not is_done_already(before, None, command)
    with pytest.raises((TerminalError, StaleDecisionError)):
        decide(state, standing, NOW, command=command)
    assert is_done_already(state, decision, command)


def test_a_plan_of_before_there_were_approvals_keeps_its_digest() -> None:
    first = ("stages", "policy", "approvers", "breaker", "slice_inputs")
    old = {name: value for name, value in msgspec.to_builtins(PLAN).items() if name in first}
    assert digest(old) == PLAN.digest()
    assert TWO.digest() != msgspec.structs.replace(TWO, approvals=1).digest()
