"""Rollouts of models that feed each other go one after the other; those of others go side by side."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.builders import constant_release
from tests.unit.rollout.examples import PLAN


class Models:
    """Models `a`, `b` (fed by `a`), `c` (fed by `b`) and `x`, each with a champion."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        fed_by = {"a": (), "b": ("a",), "c": ("a", "b"), "x": ()}
        self.plans = {model: msgspec.structs.replace(PLAN, fed_by=names) for model, names in fed_by.items()}
        for model in self.plans:
            first = self.start(model)
            rollouts.approve(self.settings, first, "anna")
            rollouts.advance(self.settings, first)

    def start(self, model: str) -> str:
        version = f"1.{len(rollouts.list(self.settings, model))}.0"
        release = constant_release(self.settings.releases, model, 0.3, semver=version)
        return rollouts.start(self.settings, model, release, actor="test", plan=self.plans[model]).id

    def running(self) -> list[str]:
        return [each.model for each in rollouts.list(self.settings) if each.slot == "running"]

    def end(self, rollout_id: str) -> None:
        rollouts.rollback(self.settings, rollout_id, "anna", "the test is over")
        rollouts.advance(self.settings, rollout_id)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")])
def test_the_second_of_two_waits_in_either_direction_and_across_a_model_between_them(
    models: Models, first: str, second: str
) -> None:
    one, two = models.start(first), models.start(second)
    assert models.running() == [first]
    shown = rollouts.show(models.settings, two)
    assert (shown["status"], shown["waits_for"]) == ("waiting", one)
    assert rollouts.look(models.settings, two).status == "waiting", "its gate waits, too"
    models.end(one)
    assert models.running() == [second]


def test_models_that_have_nothing_to_do_with_each_other_do_not_wait(models: Models) -> None:
    models.start("a")
    models.start("x")
    assert models.running() == ["a", "x"]


def test_a_promotion_is_taken_back_whatever_runs_on_the_models_beside_it(models: Models) -> None:
    promoted = models.start("a")
    for stage in ("backtest", "shadow", "canary_10", "canary_50", "bake"):
        rollouts.skip(models.settings, promoted, "anna", "no traffic here", stage=stage)
        rollouts.advance(models.settings, promoted)
    assert rollouts.load(models.settings, promoted).status == "promoted"
    models.start("b")
    assert models.running() == ["b"]
    models.end(promoted)
    assert rollouts.load(models.settings, promoted).status == "rolled_back"
    assert models.running() == ["b"]
