"""The gate's trigger over a real control database: it ends when the rollout has left its stage, whoever decided."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.contracts.errors import TransientError
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.builders import constant_release

STAGES = [{"name": "shadow", "requests": 10}, {"name": "canary_50", "share": 0.5, "requests": 10}]
POLICY = {"stages": STAGES, "metrics": [{"name": "error_rate", "kind": "event", "weight": 1.0}]}
PLAN = Plan(stages=from_spec(STAGES), policy=Policy.parse(POLICY).to_mapping(), approvers=("anna",))
NAMES = ["shadow", "canary_50"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    return Settings()


@pytest.fixture
def rollout_id(settings: Settings) -> str:
    """A rollout in shadow, against a champion."""
    first = constant_release(settings.releases, "steady", 0.2)
    second = constant_release(settings.releases, "steady", 0.3, semver="1.1.0")
    champion = rollouts.start(settings, "steady", first, actor="anna", plan=PLAN)
    rollouts.approve(settings, champion.id, "anna")
    rollouts.advance(settings, champion.id)
    begun = rollouts.start(settings, "steady", second, actor="anna", plan=PLAN)
    rollouts.advance(settings, begun.id)
    assert rollouts.load(settings, begun.id).stage == "shadow"
    return begun.id


def run_gate(rollout_id: str, stage: str, act: Callable[[], object] | None = None, within_s: float = 60.0) -> dict:
    """Run the trigger in an event loop; `act` happens in a thread once it waits. Returns state and XCom."""
    from slipway_gates import GateTrigger

    async def first_event() -> dict:
        trigger = GateTrigger(rollout_id, stage, poll_s=0.05)
        kind, kwargs = trigger.serialize()
        assert kind == "slipway_gates.GateTrigger"
        events = GateTrigger(**kwargs).run()
        waiting = asyncio.ensure_future(anext(events))
        if act is not None:
            await asyncio.sleep(0.5)  # ten looks of the trigger
            assert not waiting.done()
            await asyncio.to_thread(act)
        event = await asyncio.wait_for(waiting, within_s)
        return {"state": event.task_instance_state.value, **event.xcoms["return_value"]}

    return asyncio.run(first_event())


def test_a_gate_waits_until_the_stage_is_left_forwards(settings, rollout_id):
    ended = run_gate(rollout_id, "shadow", lambda: rollouts.skip(settings, rollout_id, "anna", "enough"))
    assert (ended["state"], ended["status"]) == ("success", "running")
    assert rollouts.load(settings, rollout_id).stage == "canary_50"


def test_a_gate_of_a_stage_that_was_left_long_ago_ends_at_once(settings, rollout_id):
    rollouts.skip(settings, rollout_id, "anna", "enough")
    began = time.monotonic()
    assert run_gate(rollout_id, "shadow")["state"] == "success"
    assert time.monotonic() - began < 30


def test_a_rollback_fails_the_gate(settings, rollout_id):
    ended = run_gate(rollout_id, "shadow", lambda: rollouts.rollback(settings, rollout_id, "anna", "no"))
    assert (ended["state"], ended["status"]) == ("failed", "rolled_back")


def test_a_gate_behind_one_that_was_marked_by_hand_fails_and_changes_nothing(settings, rollout_id):
    before = rollouts.show(settings, rollout_id)
    ended = run_gate(rollout_id, "canary_50")
    assert ended["state"] == "failed"
    assert "still in shadow" in ended["reason"]
    assert "Clear gate_shadow" in ended["reason"]
    assert rollouts.show(settings, rollout_id)["decisions"] == before["decisions"]


def test_a_gate_of_an_unknown_rollout_says_so(settings, rollout_id):
    ended = run_gate("steady-r99", "shadow")
    assert ended["state"] == "failed"
    assert "steady-r99" in ended["reason"]


def test_errors_that_may_pass_are_waited_out(settings, rollout_id, monkeypatch):
    real, calls = rollouts.load, []

    def sometimes_locked(settings: Settings, rollout_id: str):
        calls.append(rollout_id)
        if len(calls) <= 3:
            raise TransientError("control database", got="locked")
        return real(settings, rollout_id)

    monkeypatch.setattr(rollouts, "load", sometimes_locked)
    rollouts.skip(settings, rollout_id, "anna", "enough")
    assert run_gate(rollout_id, "shadow")["state"] == "success"
    assert len(calls) >= 4


def test_a_restarted_trigger_takes_up_where_the_killed_one_was(settings, rollout_id):
    from slipway_gates import GateTrigger

    async def cancelled() -> None:
        waiting = asyncio.ensure_future(anext(GateTrigger(rollout_id, "shadow", poll_s=0.05).run()))
        await asyncio.sleep(0.3)  # six looks of the trigger
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancelled())
    rollouts.skip(settings, rollout_id, "anna", "enough")
    assert run_gate(rollout_id, "shadow")["state"] == "success"


@pytest.mark.parametrize(
    ("status", "at", "gate", "passed", "says"),
    [
        ("waiting", "", "shadow", None, ""),
        ("running", "shadow", "shadow", None, ""),
        ("running", "canary_50", "shadow", True, "has left shadow"),
        ("held", "canary_50", "shadow", True, "has left shadow"),
        ("promoted", "canary_50", "canary_50", True, "has left canary_50"),
        ("running", "shadow", "canary_50", False, "still in shadow"),
        ("held", "shadow", "shadow", False, "a person decides"),
        ("held", "shadow", "canary_50", False, "still in shadow"),
        ("rolled_back", "canary_50", "shadow", False, "rolled_back"),
        ("replaced", "", "shadow", False, "replaced"),
        ("rejected", "", "shadow", False, "rejected"),
        ("running", "shadow", "ab_10", False, "has no stage ab_10"),
    ],
)
def test_how_a_gate_ends(status, at, gate, passed, says):
    from slipway_gates import outcome

    ended = outcome("r1", status, NAMES, at, gate)
    assert (None if ended is None else ended.passed) is passed
    assert says in (ended.reason if ended else "")
