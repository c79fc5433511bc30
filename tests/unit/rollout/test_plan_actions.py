"""What follows from a decision, and that the explainer says the same."""

from __future__ import annotations

import msgspec
import pytest

from pipelines.contracts import routes
from pipelines.rollout import actions as acts
from pipelines.rollout.actions import SetChampion, SetRoute
from pipelines.rollout.decide import Command, Standing, begin, decide
from pipelines.rollout.explainer import explain, sentence
from pipelines.rollout.plan_actions import plan_actions, salt_of
from pipelines.rollout.state import Decision, Recipient, Rollout
from tests.unit.rollout.examples import NEW, NOW, OLD, PLAN, after, done, rollout

HARM = Standing(word="rollback", metrics=("error_rate",), sentence="harm")


def route_of(state: Rollout, decision: Decision) -> routes.Route | None:
    planned = plan_actions(state, decision, "m:9")
    found = [action.route for action in planned if isinstance(action, SetRoute)]
    assert len(found) <= 1
    if found:
        assert isinstance(planned[0], SetRoute), "the route goes first"
        routes.check(found[0])
    return found[0] if found else None


def champion_of(state: Rollout, decision: Decision) -> str | None:
    found = [a.release for a in plan_actions(state, decision, "m:9") if isinstance(a, SetChampion)]
    return found[0] if found else None


def test_shadow_and_canary_routes_score_both_arms_and_keep_the_champion_warm() -> None:
    shadow = route_of(rollout("backtest"), decide(rollout("backtest"), Standing(), NOW))
    assert shadow is not None
    assert (shadow.mode, shadow.share_ppm, shadow.shadow, shadow.stage) == ("shadow", 0, True, "shadow")
    canary = route_of(rollout("shadow"), decide(rollout("shadow"), done(), NOW))
    assert canary is not None
    assert (canary.mode, canary.share_ppm, canary.shadow) == ("split", 100_000, True)
    assert (canary.champion, canary.challenger, canary.fallback) == (OLD, NEW, OLD)
    assert canary.salt == salt_of("m-r2") != salt_of("m-r3")
    assert canary.decision_id == "m:9"


def test_the_bake_makes_the_challenger_champion_with_the_old_one_warm() -> None:
    state = rollout("canary_50")
    decision = decide(state, done(), NOW)
    route = route_of(state, decision)
    assert route is not None
    assert (route.mode, route.champion, route.fallback, route.stage) == ("single", NEW, OLD, "bake")
    assert route.rollout_id == "m-r2"
    assert champion_of(state, decision) == NEW


def test_the_end_of_the_bake_leaves_the_champion_as_it_is() -> None:
    state = rollout("bake", provisional=True)
    decision = decide(state, done(), NOW)
    route = route_of(state, decision)
    assert route is not None
    assert (route.champion, route.stage, route.rollout_id) == (NEW, "live", None)
    assert champion_of(state, decision) is None


@pytest.mark.parametrize("stage", ["backtest", "shadow", "canary_10", "canary_50"])
def test_a_rollback_before_the_promotion_leaves_the_champion_alone_answering(stage: str) -> None:
    state = rollout(stage)
    decision = decide(state, HARM, NOW)
    route = route_of(state, decision)
    assert route is not None
    assert (route.mode, route.champion, route.challenger) == ("single", OLD, None)
    assert champion_of(state, decision) is None


@pytest.mark.parametrize(("stage", "status"), [("bake", "running"), ("bake", "promoted")])
def test_a_rollback_after_it_restores_the_old_champion(stage: str, status: str) -> None:
    state = rollout(stage, provisional=status == "running", status=status)
    decision = decide(state, Standing(), NOW, command=Command(verb="rollback", actor="anna"))
    route = route_of(state, decision)
    assert route is not None
    assert (route.mode, route.champion) == ("single", OLD)
    assert champion_of(state, decision) == OLD


def test_a_hold_changes_no_route_and_calls_somebody() -> None:
    decision = decide(rollout("canary_50"), Standing(requests=1), after(days=9))
    planned = plan_actions(rollout("canary_50"), decision, "m:9")
    freeze, told = planned
    assert freeze == acts.Freeze(model="m", stage="canary_50", share_ppm=500_000)
    assert isinstance(told, acts.Notify)
    assert (told.level, told.by) == ("page", "log")
    assert sentence(freeze) == "freeze m in canary_50 at share 0.5"


def test_whom_the_plan_names_is_told_of_what_concerns_them() -> None:
    names = (Recipient(by="webhook", to="http://x/hook", level="page"), Recipient(by="email", to="a@example.com"))
    state = rollout("canary_50", plan=msgspec.structs.replace(PLAN, notify=names))

    def told(decision: Decision) -> list[tuple[str, str]]:
        return [(a.by, a.to) for a in plan_actions(state, decision, "m:9") if isinstance(a, acts.Notify)]

    assert told(decide(state, HARM, NOW)) == [("log", ""), ("webhook", "http://x/hook"), ("email", "a@example.com")]
    assert told(decide(state, done(), NOW)) == [("log", ""), ("email", "a@example.com")]


def test_a_route_clears_the_overrides_that_its_decision_dealt_with() -> None:
    route = route_of(rollout("shadow"), decide(rollout("shadow"), done(), NOW, overrides=["gw0/0/1/7"]))
    assert route is not None
    assert route.clears_overrides == ["gw0/0/1/7"]


def test_a_waiting_rollout_that_is_replaced_touches_no_route() -> None:
    waiting = rollout("", status="waiting")
    decision = decide(waiting, Standing(), NOW, command=Command(verb="replace", actor="test"))
    assert route_of(waiting, decision) is None
    assert champion_of(waiting, decision) is None


def test_the_first_champion_is_routed_by_its_approval_alone() -> None:
    waiting = rollout("", champion=None, status="waiting")
    assert route_of(waiting, begin(waiting, NOW, "test")) is None
    state = rollout("approval", champion=None)
    decision = decide(state, Standing(), NOW, command=Command(verb="approve", actor="anna"))
    route = route_of(state, decision)
    assert route is not None
    assert (route.champion, route.fallback) == (NEW, None)
    assert champion_of(state, decision) == NEW


@pytest.mark.parametrize(
    ("state", "standing", "attached"),
    [
        (rollout("canary_50"), done(), True),
        (rollout("bake", provisional=True), done(), True),
        (rollout("canary_10"), HARM, True),
        (rollout("shadow"), done(), False),
    ],
)
def test_the_page_of_a_rollout_is_attached_last_when_it_is_promoted_or_withdrawn(
    state: Rollout, standing: Standing, attached: bool
) -> None:
    planned = plan_actions(state, decide(state, standing, NOW), "m:9")
    report = acts.AttachReport(model="m", release=NEW, rollout_id="m-r2")
    assert (report in planned) is attached
    if attached:
        assert planned[-1] == report
        assert acts.target(report) not in {acts.target(action) for action in planned[:-1]}, "an outage delays it alone"


def test_actions_survive_the_record_unchanged() -> None:
    planned = plan_actions(rollout("canary_50"), decide(rollout("canary_50"), done(), NOW), "m:9")
    assert acts.from_builtins(acts.to_builtins(planned)) == planned


def test_the_explainer_says_every_action_and_the_reason() -> None:
    state = rollout("canary_50")
    decision = decide(state, done(), NOW)
    planned = plan_actions(state, decision, "m:9")
    lines = explain(decision, planned)
    assert decision.reason in lines[0]
    assert [line.strip() for line in lines[1:]] == [sentence(action) for action in planned]
    assert f"set route of m: {NEW[:12]} answers alone, {OLD[:12]} warm" in lines[1]
