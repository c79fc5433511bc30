"""A challenger is tried on the models that are given its scores before it leaves shadow.

Two models in one home, with real releases, log and lake: `price` is given the score of `risk` as its input `x`, under
the id of the request that `risk` answered.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from pipelines.contracts.events import Assignment, Label, Response
from pipelines.contracts.release import InputField, ModelFeature
from pipelines.rollout.conditions import FedModel
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Feeds, Plan
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_model
from pipelines.wiring import rollout_plan, rollouts
from pipelines.wiring.collect import collect_once
from pipelines.wiring.projects import check
from pipelines.wiring.rollout_page import page
from pipelines.wiring.rollout_replay import replay_rollout
from tests.builders import constant_release
from tests.unit.collect.traffic import Worker

WANTED = 400
STAGES: list[dict[str, Any]] = [
    {"name": "shadow", "requests": 100},
    {"name": "canary_50", "share": 0.5, "requests": 50},
]
ERRORS = {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02}
LOSS = {"name": "squared", "kind": "paired_loss", "loss": "squared", "cap": 1.0, "harm_rel": 0.05}
PRICE_POLICY = {
    "stages": [{"name": "shadow", "requests": WANTED}],
    "integrity": [],
    "metrics": [LOSS],
    "warmup_requests": 0,
    "label_maturity_s": 1,
}


class TwoModels:
    """Champions of both models, and a rollout of `risk` whose challenger scores `slope` too high."""

    def __init__(self, home: Path, slope: float) -> None:
        self.settings = Settings(home=home)
        releases = self.settings.releases
        self.price = constant_release(
            releases,
            "price",
            0.0,
            slope=1.0,
            inputs=[InputField(name="x", datatype="FP64")],
            features=[ModelFeature(name="x", source="input", default=0.0)],
        )
        feeds = Feeds(model="price", input="x", requests=WANTED, policy=Policy.parse(PRICE_POLICY).to_mapping())
        policy = Policy.parse({"stages": STAGES, "integrity": [], "metrics": [ERRORS]}).to_mapping()
        self.plan = Plan(stages=from_spec(STAGES), policy=policy, feeds=(feeds,))
        self.slope = slope
        self.champion = constant_release(releases, "risk", 0.1, slope=0.5)
        self.challenger = constant_release(releases, "risk", 0.1, slope=0.5 + slope, semver="1.1.0")
        for model, release in {"price": self.price, "risk": self.champion}.items():
            first = rollouts.start(self.settings, model, release, actor="test", plan=self.plan)
            rollouts.approve(self.settings, first.id, "anna")
            rollouts.advance(self.settings, first.id)
        self.rollout = rollouts.start(self.settings, "risk", self.challenger, actor="test", plan=self.plan).id
        rollouts.advance(self.settings, self.rollout)
        self.worker = Worker(self.settings.bus, start_us=rollouts.load(self.settings, self.rollout).created_event_us)
        self.asked = 0

    def ask(self, count: int, *, sent_as_served: bool = True, end: int = 50) -> None:
        """So many cases go through both models, with truths for the second, and then `end` more without."""
        rng = random.Random(self.asked)
        for number in range(self.asked, self.asked + count + end):
            x = rng.random()
            scores = {"champion": 0.1 + 0.5 * x, "challenger": 0.1 + (0.5 + self.slope) * x}
            self._log(f"case-{number}", x, scores, given=scores["champion"] * (1.0 if sent_as_served else 2.0))
            truth = min(1.0, max(0.0, scores["champion"] + rng.gauss(0, 0.05)))
            if number < self.asked + count:
                common = {"model": "price", "request_id": f"case-{number}"}
                self.worker.append(Label, value=truth, **common)
        self.asked += count + end
        collect_once(self.settings)

    def _log(self, name: str, x: float, scores: dict[str, float], given: float) -> None:
        self.worker.now_us += 10_000
        state = rollouts.load(self.settings, self.rollout)
        risk: dict[str, Any] = {"model": "risk", "request_id": name, "rollout_id": self.rollout}
        asked: dict[str, Any] = {"arm": "champion", "share_ppm": 0, "salt": "", "unit": name, "route_version": 1}
        self.worker.append(
            Assignment, mode="shadow", stage="shadow", champion=self.champion, challenger=self.challenger,
            inputs={"x": [x]}, paired=True, **risk, **asked,
        )  # fmt: skip
        for arm, score in scores.items():
            release = state.champion if arm == "champion" else state.challenger
            served = arm == "champion"
            self.worker.append(
                Response, arm=arm, release=release, status="ok", served=served, shadow=not served, raw=[score],
                score=[score], **risk,
            )  # fmt: skip
        price: dict[str, Any] = {"model": "price", "request_id": name, "rollout_id": None}
        inputs = {"x": [given]}
        self.worker.append(
            Assignment, mode="single", stage="live", champion=self.price, inputs=inputs, **price, **asked
        )
        self.worker.append(
            Response, arm="champion", release=self.price, status="ok", served=True, raw=[given], score=[given], **price
        )

    def look(self) -> rollouts.Look:
        return rollouts.look(self.settings, self.rollout, as_of_us=self.worker.now_us)


def test_the_specs_say_who_is_tried_and_by_which_policy_and_a_rollout_keeps_it(tmp_path: Path) -> None:
    include = tmp_path / "include"
    shutil.copytree(PROJECT / "include", include)
    settings = Settings(home=tmp_path / "home", include_dir=include)
    spec = yaml.safe_load((include / "models" / "air_time.yaml").read_text())
    spec |= {"name": "price", "fed_by": ["air_time", {"model": "late_arrival", "input": "distance", "requests": 70}]}
    (include / "models" / "price.yaml").write_text(yaml.safe_dump(spec))
    assert check(settings).mistakes == []
    assert rollout_plan.feeds(settings, "air_time") == (), "an order alone is a name alone"
    release = constant_release(settings.releases, "late_arrival", 0.5)
    (feeds,) = rollouts.planned(settings, "late_arrival", release).feeds
    assert (feeds.model, feeds.input, feeds.requests) == ("price", "distance", 70)
    policy = Policy.parse(feeds.policy)
    assert [stage.name for stage in policy.stages] == ["shadow"]
    assert {metric.name for metric in policy.metrics} == {each["name"] for each in spec["rollout"]["policy"]["metrics"]}
    assert rollout_plan.fed_by(settings, load_model(include, "price")) == ("air_time", "late_arrival")


def tried(look: rollouts.Look) -> FedModel:
    assert look.decision is not None
    assert look.decision.conditions is not msgspec.UNSET
    (found,) = look.decision.conditions
    assert isinstance(found, FedModel)
    return found


def test_a_challenger_that_harms_the_model_behind_it_is_held_in_shadow_and_the_record_gives_it_again(
    tmp_path: Path,
) -> None:
    made = TwoModels(tmp_path, slope=0.4)
    made.ask(1500)
    held = made.look()
    found = tried(held)
    assert (held.status, found.word, found.metrics) == ("held", "rollback", ("squared",))
    assert held.decision is not None
    assert held.decision.metrics == ("effect on price",)
    assert "price is harmed by its scores: " in held.decision.reason
    assert found.requests == 1550
    assert replay_rollout(made.settings, made.rollout).differences == []
    assert "effect on price: its champion given the challenger" in page(made.settings, made.rollout)

    made.ask(300)  # what comes later changes nothing of what was judged
    assert replay_rollout(made.settings, made.rollout).differences == []


def test_a_challenger_that_leaves_the_model_behind_it_as_good_goes_on(tmp_path: Path) -> None:
    made = TwoModels(tmp_path, slope=0.001)
    made.ask(1000)
    passed = made.look()
    found = tried(passed)
    assert passed.decision is not None
    assert (passed.decision.next_stage, found.word, found.fault) == ("canary_50", "continue", "")
    assert replay_rollout(made.settings, made.rollout).differences == []


@pytest.mark.parametrize("sent_as_served", [True, False])
def test_it_waits_in_shadow_until_enough_requests_have_both_scores(tmp_path: Path, sent_as_served: bool) -> None:
    made = TwoModels(tmp_path, slope=0.001)
    made.ask(WANTED - 200 if sent_as_served else 1500, sent_as_served=sent_as_served)
    paused = made.look()
    found = tried(paused)
    assert paused.decision is not None
    assert (paused.decision.kind, paused.status) == ("pause", "running")
    assert (found.requests, found.altered) == ((250, 0) if sent_as_served else (0, 1550))
    assert f"{found.requests} of {WANTED} requests of price have both scores" in paused.decision.reason
    if sent_as_served:
        made.ask(1000)
        passed = made.look()
        assert passed.decision is not None
        assert passed.decision.next_stage == "canary_50"
    else:
        assert "1,550 more had another x than was served" in paused.decision.reason
