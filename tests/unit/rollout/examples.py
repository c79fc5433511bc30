"""A small plan and states of a rollout for tests."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.rollout.decide import Now, Standing
from pipelines.rollout.plan_actions import salt_of
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan, Rollout
from pipelines.spec.durations import parse

DAY_US = 86_400_000_000
STAGES: list[dict[str, Any]] = [
    {"name": "backtest"},
    {"name": "shadow", "requests": 100},
    {"name": "canary_10", "share": 0.1, "requests": 200, "min_event_time": "1d event_time"},
    {"name": "canary_50", "share": 0.5, "requests": 200},
    {"name": "bake", "requests": 50},
]
POLICY = {
    "stages": [{k: v for k, v in stage.items() if k != "min_event_time"} for stage in STAGES],
    "metrics": [
        {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02, "weight": 0.4},
        {"name": "invalid_score", "kind": "event", "weight": 0.3},
    ],
}
PLAN = Plan(
    stages=from_spec(STAGES, parse("3d event_time")),
    policy=Policy.parse(POLICY).to_mapping(),
    approvers=("anna", "ben"),
)
OLD, NEW = "a" * 64, "b" * 64
NOW = Now(event_us=10 * DAY_US, wall_us=20 * DAY_US)


def rollout(stage: str = "shadow", **changes: Any) -> Rollout:
    """A running rollout of `NEW` against `OLD` that entered `stage` now."""
    fields: dict[str, Any] = {
        "id": "m-r2",
        "model": "m",
        "challenger": NEW,
        "champion": OLD,
        "plan": PLAN,
        "policy_digest": "p",
        "salt": salt_of("m-r2"),
        "status": "running",
        "stage": stage,
        "actor": "test",
        "created_event_us": 0,
        "created_wall_us": 0,
        "stage_event_us": NOW.event_us,
        "stage_wall_us": NOW.wall_us,
    }
    return Rollout(**(fields | changes))


def after(now: Now = NOW, *, days: float) -> Now:
    """The moment `days` of event time later."""
    return msgspec.structs.replace(now, event_us=now.event_us + round(days * DAY_US))


def done(requests: int = 1000, **changes: Any) -> Standing:
    """A stage with its requests and every proof in."""
    return Standing(requests=requests, proven=True, **changes)
