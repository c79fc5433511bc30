"""The ways a challenger may go beside a ramp: a comparison, a switch at once; and stages that do not apply."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts import assignment
from pipelines.contracts.clocks import wall_us
from pipelines.rollout.offline import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.simulator import Fault, simulate
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.rollout.traffic import Traffic
from pipelines.spec.durations import parse
from pipelines.wiring import rollouts
from pipelines.wiring.collect import collect_once
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker

GUARDRAIL = {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.05, "weight": 0.3}
PRIMARY = {"name": "kpi", "kind": "mean", "range": [0, 1], "better": "higher", "role": "primary", "weight": 0.3}
LOGLOSS = {"name": "logloss", "kind": "paired_loss", "promote_margin_rel": 0.1, "weight": 0.3}


def plan(stages: list[dict[str, Any]], metrics: list[dict[str, Any]]) -> Plan:
    listed = [{key: value for key, value in stage.items() if key != "min_event_time"} for stage in stages]
    policy = Policy.parse({"stages": listed, "metrics": metrics, "label_maturity_s": 1})
    return Plan(stages=from_spec(stages, parse("60s event_time")), policy=policy.to_mapping())


def play(made: Installation, label: Callable[[str, random.Random], bool], most: int = 2_500) -> int:
    """Traffic until the rollout is at rest; how many requests it took. `label` says what is true, by the arm served."""
    # The stage has begun on the machine's clock, so the traffic begins there too.
    rng, worker, sent = random.Random(7), Worker(made.bus, start_us=wall_us()), 0
    while rollouts.load(made.settings, made.rollout).status == "running" and sent < most:
        for _ in range(200):
            route = made.route
            arm = assignment.draw(route.salt, f"q{sent}", route.share_ppm) if route.mode == "split" else "champion"
            worker.request(route, f"q{sent}", label=float(label(arm, rng)))
            sent += 1
        collect_once(made.settings)
        rollouts.look(made.settings, made.rollout, as_of_us=worker.now_us)
        rollouts.advance(made.settings, made.rollout)
    return sent


AB = plan(
    [
        {"name": "ab_50", "share": 0.5, "requests": 300, "min_event_time": "5s event_time"},
        {"name": "bake", "requests": 100},
    ],
    [GUARDRAIL, PRIMARY],
)


def test_a_challenger_that_is_better_wins_its_comparison_after_the_least_time(tmp_path: Path) -> None:
    made = Installation(tmp_path, plan=AB)
    assert (made.route.mode, made.route.shadow, made.route.share_ppm) == ("split", False, 500_000)
    sent = play(made, lambda arm, rng: rng.random() < (0.8 if arm == "challenger" else 0.2))
    shown = rollouts.show(made.settings, made.rollout)
    assert shown["status"] == "promoted"
    promotion = next(each for each in shown["decisions"] if each["kind"] == "promote")
    assert promotion["stage"] == "ab_50"
    verdict = next(row for row in promotion["verdicts"] if row["metric"] == "kpi")
    assert "; better (e-value" in verdict["reason"]
    assert sent > 500, "a second is a hundred requests here, and five seconds the least"


def test_one_that_is_not_better_is_no_winner(tmp_path: Path) -> None:
    made = Installation(tmp_path, plan=AB)
    play(made, lambda _, rng: rng.random() < 0.5, most=400)
    rollout = rollouts.load(made.settings, made.rollout)
    assert rollout.stage == "ab_50", "as good is not better"
    shown = rollouts.show(made.settings, made.rollout)
    assert [row["verdict"] for row in shown["verdicts"] if row["metric"] in ("kpi", "error_rate")] == [
        "pass",
        "inconclusive",
    ]


def test_blue_green_switches_all_traffic_at_once_and_keeps_the_other_warm(tmp_path: Path) -> None:
    made = Installation(tmp_path, plan=plan([{"name": "shadow", "requests": 400}, {"name": "bake", "requests": 100}],
                                            [GUARDRAIL, LOGLOSS]))  # fmt: skip
    routes = [made.route]
    assert (routes[0].mode, routes[0].shadow) == ("shadow", True)
    play(made, lambda _, rng: rng.random() < 0.3)
    shown = rollouts.show(made.settings, made.rollout)
    assert shown["status"] == "promoted"
    bake = next(each for each in shown["decisions"] if each.get("next_stage") == "bake")
    route = next(action for action in bake["actions"] if "route" in action)["route"]
    assert (route["mode"], route["champion"], route["fallback"]) == ("single", made.challenger, made.champion)


def offline(kpi: float, errors: float | None = None) -> dict[str, Any]:
    """The last word on a comparison of 4,000 made-up requests."""
    metrics = [GUARDRAIL, PRIMARY | {"range": [0, 10]}]
    stages = [{"name": "ab_50", "share": 0.5, "requests": 4_000, "min_event_time_s": 600}]
    body = {"stages": stages, "metrics": metrics, "label_maturity_s": 60}
    fault = Fault(kpi_factor=kpi, error_rate=errors)
    return judge(body, simulate(Policy.parse(body), seed=3, traffic=Traffic(), fault=fault))[-1]


@pytest.mark.parametrize(
    ("kpi", "errors", "verdict", "missing"),
    [(1.15, None, "promote", []), (1.0, None, "inconclusive", ["kpi"]), (1.15, 0.1, "rollback", [])],
    ids=["better", "as good", "better at the price of a guardrail"],
)
def test_a_comparison_is_judged_the_same_way_over_files(
    kpi: float, errors: float | None, verdict: str, missing: list[str]
) -> None:
    last = offline(kpi, errors)
    assert (last["verdict"], last["missing"]) == (verdict, missing)


def test_what_a_backtest_cannot_judge_and_what_does_not_apply_are_on_record(tmp_path: Path) -> None:
    made = Installation(tmp_path, plan=plan([{"name": "backtest"}, {"name": "shadow", "requests": 600}], [LOGLOSS]))
    reason = "the inference log has no answered request with a label that is mature"
    assert rollouts.backtest(made.settings, made.rollout) == {"requests": 0, "no_data": reason}
    looked = rollouts.look(made.settings, made.rollout)
    assert looked.decision is not None
    assert looked.decision.reason == f"no_data for the backtest: {reason}; on to shadow"
    assert {row["verdict"] for row in looked.verdicts if row["metric"] == "logloss"} == {"no_data"}
    first = " ".join(rollouts.explain(made.settings, "m-r1"))
    assert "There is no champion yet: backtest, shadow are not applicable, a named person has to approve" in first
