"""`slipway gate simulate --model`: the model's own policy on its own traffic."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipelines.cli.gate import app
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.routes import Route
from pipelines.rollout.base_rates import Answers
from pipelines.rollout.catalogue import TRAPS
from pipelines.rollout.course import Course, play, staged
from pipelines.rollout.policy import Policy
from pipelines.rollout.resampling import DAY_US, prepared, resample
from pipelines.rollout.simulator import HEALTHY, afflict, draw_arms, tables_of
from pipelines.rollout.traffic import Traffic, World, draw_world
from pipelines.rollout.traps import beset
from pipelines.spec.loading import load_model
from pipelines.wiring import rollout_check
from pipelines.wiring.collect import collect_once
from pipelines.wiring.gate_simulate import faults, simulate_model
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker
from tests.unit.rollout.test_stage_lengths import SPEC, installed

POLICY = Policy.parse(
    {
        "stages": [{"name": "shadow", "requests": 10}],
        "slices": ["shop"],
        "score_range": [0, 1],
        "metrics": [{"name": "logloss", "kind": "paired_loss"}],
    }
)


def world(n: int = 4_000) -> World:
    return draw_world([n // 2, n // 2], Traffic(units=4_000), np.random.default_rng(8))


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_on_any_traffic_leaves_neither_arm_worse_once_it_is_warm(name: str) -> None:
    before = world()
    after = beset(before, TRAPS[name], [2_000, 2_000], np.random.default_rng(9), first=100, maturity_s=3_600.0)
    warm = slice(100 + TRAPS[name].cold_start, None)
    assert abs(after.failed[warm, 1].mean() - after.failed[warm, 0].mean()) < 0.01
    slower = np.log(after.latency_ms[warm] / before.latency_ms[warm]).mean(axis=0)
    assert abs(slower[1] - slower[0]) < 0.1
    assert (np.isfinite(after.label) <= np.isfinite(before.label)).all()
    changed = any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(after, before, strict=True) if a is not b)
    assert changed == (name != "both arms score all along"), "there a model's rollouts shadow anyway"


def test_a_bake_follows_the_promotion_and_its_challenger_answers_alone() -> None:
    stages = [{"name": "shadow", "requests": 4_000}, {"name": "bake", "requests": 500, "weight": 0.1}]
    loss = {"name": "logloss", "kind": "paired_loss", "harm_rel": 0.01, "promote_margin_rel": 0.2, "weight": 1.0}
    policy = Policy.parse({"stages": stages, "metrics": [loss], "slices": ["slice"], "label_maturity_s": 600})
    course = Course(policy, [6_000, 500])
    rng = np.random.default_rng(3)
    made = draw_world(course.sizes, Traffic(label_delay_s=100.0), rng)
    arms = draw_arms(policy, course.sizes, made.unit, HEALTHY, rng, sticky=False)
    logged, arms = staged(course, afflict(made, arms, HEALTHY, rng, shadowing=True), arms)
    lines, tables = play(course, logged, arms, lambda part, of, _: tables_of(part, of, ["shadow", "bake"]))
    asked = tables["assignments"].to_pandas()
    assert lines[-1]["verdict"] == "promote"
    assert lines[-1]["stage"] == "bake"
    assert asked["stage"].value_counts().to_dict() == {"shadow": 4_000, "bake": 500}
    assert set(asked[asked["stage"] == "bake"]["arm"]) == {"challenger"}
    assert (np.diff(asked["ts"].astype("int64")) > 0).all()
    assert set(tables["responses"].to_pandas().query("request_id >= 4000")["arm"]) == {"challenger"}


def logged(days: int = 8, per_day: int = 300) -> Answers:
    """Some days of answers whose latency grows within a day and whose labels take two hours."""
    rng, n = np.random.default_rng(4), days * per_day
    truth = rng.normal(0.0, 1.0, n)
    event_us = np.arange(n) // per_day * DAY_US + np.arange(n) % per_day * 60_000_000
    score = 1.0 / (1.0 + np.exp(-truth))
    return Answers(
        event_us=event_us,
        failed=rng.random(n) < 0.01,
        score=score,
        latency_ms=10.0 + np.arange(n) % per_day,
        label=np.where(rng.random(n) < 0.9, rng.random(n) < score, np.nan),
        kpi=np.full(n, np.nan),
        slices=[{"shop": "ab"[number % 2]} for number in range(n)],
        label_us=[int(at) + 7_200_000_000 for at in event_us],
        kpi_us=[int(at) for at in event_us],
    )


def test_days_are_drawn_whole_with_their_order_delays_and_slices() -> None:
    answers = logged()
    world, row = resample(prepared(answers, POLICY, 0.2), 1_000, np.random.default_rng(1))
    assert len(world.ts) == len(row) == 1_000
    assert (np.diff(world.ts) > 0).all()
    begins = np.flatnonzero(np.r_[True, np.diff(row) != 1])
    assert (row[begins] % 300 == 0).all(), "a block begins where a day does"
    np.testing.assert_array_equal(world.label, answers.label[row])
    assert set((world.label_at - world.ts).tolist()) == {7_200_000_000}
    assert world.slices == ("a", "b")
    np.testing.assert_array_equal(world.part, row % 2)
    assert np.abs(world.latency_ms[:, 1] - world.latency_ms[:, 0]).max() <= 300
    assert np.median(np.abs(world.latency_ms[:, 1] - world.latency_ms[:, 0])) <= 20, "load is shared by both arms"


def test_neither_arm_is_the_better_one_and_they_differ_as_two_releases_do() -> None:
    log = prepared(logged(days=30), POLICY, 0.2)
    world, _ = resample(log, 9_000, np.random.default_rng(2))
    known = ~np.isnan(world.label)
    loss = -np.where(world.label[:, None] > 0.5, np.log(world.score), np.log1p(-world.score))[known]
    assert (loss[:, 1] - loss[:, 0]).std() == pytest.approx(0.2, rel=0.15)
    assert abs((loss[:, 1] - loss[:, 0]).mean()) < 4 * 0.2 / known.sum() ** 0.5


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A champion that has answered 600 requests, one in a hundred in error."""
    made = Installation(tmp_path_factory.mktemp("home"))
    rng, worker = np.random.default_rng(5), Worker(made.bus)
    alone = Route(model="m", version=1, mode="single", champion=made.champion, stage="live")
    for number in range(600):
        fails = frozenset({"champion"}) if number % 100 == 50 else frozenset[str]()
        score = float(rng.uniform(0.1, 0.9))
        worker.request(alone, f"c{number}", label=float(rng.random() < score), score=score, fails=fails)
    collect_once(made.settings)
    return made


def spec() -> dict[str, Any]:
    rollout = copy.deepcopy(SPEC["rollout"])
    rollout["stages"] = [{"name": "backtest"}, {"name": "shadow", "requests": 600},
                         {"name": "canary_50", "share": 0.5, "requests": 600},
                         {"name": "bake", "requests": 10}]  # fmt: skip
    rollout["policy"]["metrics"] = [
        {"name": "error_rate", "kind": "event", "promote_margin_abs": 0.2, "harm_ratio": 2.0, "weight": 0.5},
        {"name": "logloss", "kind": "paired_loss", "promote_margin_rel": 0.3, "weight": 0.5},
    ]
    labels = SPEC["labels"] | {"maturity": "1s event_time"}
    return {"rollout": rollout, "labels": labels, "traffic": None}


def test_rollouts_are_played_on_the_log_healthy_and_with_a_fault(played: Installation) -> None:
    installed(played.settings.root, **spec())
    settings = played.settings.model_copy(update={"include_dir": played.settings.root / "include"})
    done: list[int] = []
    healthy = simulate_model(settings, "m", runs=2, seed=2, on_run=done.append)
    assert done == [1, 2]
    assert healthy.traffic == "the inference log, 600 requests"
    assert (healthy.shares["rollback"], healthy.shares["hold"], healthy.shares["promote"]) == (0.0, 0.0, 1.0)
    assert simulate_model(settings, "m", runs=2, seed=2).to_mapping() == healthy.to_mapping()
    broken = simulate_model(settings, "m", "scores shifted by one logit", runs=2, seed=2)
    assert broken.shares["by"] == {"logloss": 2}
    assert broken.shares["hours_to_stop_median"] is not None


def test_a_model_without_a_log_is_played_at_its_declared_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, **spec() | {"traffic": SPEC["traffic"]})
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_INCLUDE_DIR", str(tmp_path / "include"))
    words = ["simulate", "--model", "m", "--fault", "errors .1 -> 5 %", "--runs", "2", "--json"]
    told = json.loads(CliRunner().invoke(app, words).stdout)
    assert told["traffic"] == "made up at base rates"
    assert (told["runs"], told["rollback"], told["by"]) == (2, 1.0, {"error_rate": 2})
    shown = CliRunner().invoke(app, [*words[:-3], "--runs", "1"]).stdout
    assert "stopped by error_rate (1)" in shown


def test_harm_of_a_release_is_found_in_its_backtest_and_traps_do_not_stop_it(played: Installation) -> None:
    """Six hundred logged requests are its backtest: scores that are wrong are wrong there, slow starts come later."""
    wide = spec()
    wide["rollout"]["stages"][0]["requests"] = 500
    wide["rollout"]["policy"]["warmup_requests"] = 150
    installed(played.settings.root / "wide", **wide)
    settings = played.settings.model_copy(update={"include_dir": played.settings.root / "wide" / "include"})
    broken = simulate_model(settings, "m", "scores shifted by one logit", runs=2, seed=2)
    assert broken.shares["by"] == {"logloss": 2}
    assert broken.shares["hours_to_stop_median"] < 0.01, "as live traffic begins"
    for trap in ("cold start", "early positive labels", "drift in both arms", "better model"):
        found = simulate_model(settings, "m", trap, runs=1, seed=3)
        assert (found.shares["rollback"], found.shares["hold"]) == (0.0, 0.0), trap


def test_the_catalogue_is_listed_and_an_unknown_fault_gets_the_nearest_name(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["simulate", "--model", "m", "--fault", "list"]).stdout.splitlines() == faults()
    with pytest.raises(NotFoundError, match=r"Did you mean 'kpi -8 %'\?"):
        simulate_model(installed(tmp_path).model_copy(), "m", "kpi -9 %")


def test_what_logged_traffic_cannot_reach_is_refused_by_check_and_not_by_apply(played: Installation) -> None:
    greedy = spec()
    greedy["rollout"]["policy"]["metrics"][1]["promote_margin_rel"] = 0.01
    installed(played.settings.root / "greedy", **greedy)
    settings = played.settings.model_copy(update={"include_dir": played.settings.root / "greedy" / "include"})
    model = load_model(settings.include_dir, "m")
    [problem] = rollout_check.problems(settings, model)
    assert problem.location == ("rollout", "policy", "metrics", 1)
    assert problem.message.startswith("logloss +1 % needs ")
    assert problem.message.endswith("(traffic of the inference log)")
    assert list(rollout_check.problems(settings, model, logged=False)) == []
