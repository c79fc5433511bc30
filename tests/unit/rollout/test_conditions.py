"""Stale features pause a rollout and name their alert, wrong ones hold it, and the record can be judged again."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from pipelines.contracts.clocks import parse_event_time
from pipelines.contracts.release import ViewPin
from pipelines.rollout.conditions import Condition, Fresh, Parity
from pipelines.rollout.decide import decide
from pipelines.rollout.explainer import explain
from pipelines.rollout.feature_terms import view_name
from pipelines.rollout.plan_actions import plan_actions
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Decision, Plan, apply
from pipelines.settings import Settings
from pipelines.spec.durations import parse
from pipelines.wiring import feature_terms, features, parity, rollouts
from pipelines.wiring.gate_conditions import measured
from pipelines.wiring.rollout_page import page
from pipelines.wiring.rollout_replay import replay_rollout
from tests.unit.features.logged_requests import HOUR_US, MODEL, LoggedRequests
from tests.unit.rollout.examples import NOW, after, done, rollout

STALE = Fresh(
    view="v__1", readable_us=NOW.event_us - 7 * HOUR_US, event_us=NOW.event_us, allowed_us=6 * HOUR_US, alert="A"
)
FRESH = msgspec.structs.replace(STALE, allowed_us=8 * HOUR_US)
WRONG = Parity(report="d", verdict="fail", sentence="3 of 9 rows are wrong", blocks=True)


def _decided(*conditions: Condition, **changes: Any) -> Decision:
    return decide(rollout("shadow", **changes), done(conditions=conditions), NOW)


def test_a_stale_view_pauses_the_rollout_once_says_which_and_how_old_and_pages_with_its_alert() -> None:
    decision = _decided(FRESH, STALE)
    assert (decision.kind, decision.cause, decision.metrics) == ("pause", "condition", ("freshness of v__1",))
    assert "A: v__1 is 7.0 h old (readable through 1970-01-10 17:00), 6.0 h allowed" in decision.reason
    *_, notify = plan_actions(rollout("shadow"), decision, "m:1")
    assert notify.level == "page"
    said = explain(decision, (notify,))
    assert "freshness of v__1: v__1 is 7.0 h old" in said[2], "what was measured beside the evidence"
    assert "A: v__1 is 7.0 h old" in said[-1]
    paused = apply(rollout("shadow"), decision, 2)
    assert decide(paused, done(conditions=(STALE,)), NOW).is_wait
    gone_on = decide(paused, done(conditions=(FRESH,)), NOW)
    assert gone_on.next_stage == "canary_10"
    assert apply(paused, gone_on, 3).paused == ""


def test_a_view_that_was_never_readable_stands_against_the_promotion_too() -> None:
    never = msgspec.structs.replace(STALE, readable_us=None)
    promoting = decide(rollout("canary_50"), done(conditions=(never,)), NOW)
    assert (promoting.kind, promoting.reason.endswith("v__1 was never readable online")) == ("pause", True)


def test_a_stage_whose_time_is_over_while_a_view_is_stale_asks_a_person_and_says_why() -> None:
    paused = apply(rollout("shadow"), _decided(STALE), 2)
    late = decide(paused, done(conditions=(STALE,)), after(days=4))
    assert (late.kind, late.cause) == ("inconclusive", "max_wait")
    assert "v__1 is 7.0 h old" in late.reason


def test_wrong_features_hold_the_rollout_until_a_person_decides() -> None:
    decision = _decided(STALE, WRONG)
    assert (decision.kind, decision.cause) == ("hold", "condition")
    assert "features differ from the lake: 3 of 9 rows are wrong" in decision.reason
    assert _decided(FRESH, msgspec.structs.replace(WRONG, blocks=False)).next_stage == "canary_10"


def test_conditions_stand_in_the_record_and_are_read_back_as_they_were() -> None:
    decision = _decided(STALE, WRONG)
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision).conditions == (STALE, WRONG)
    assert "conditions" not in json.loads(msgspec.json.encode(decide(rollout("shadow"), done(requests=1), NOW)))


START = "2013-01-18T10:00:00Z"
STAGES: list[dict[str, Any]] = [{"name": "shadow", "requests": 20}, {"name": "canary_20", "share": 0.2, "requests": 20}]
POLICY = {
    "stages": STAGES,
    "integrity": [],
    "metrics": [{"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02}],
}
PLAN = Plan(stages=from_spec(STAGES, parse("30d event_time")), policy=Policy.parse(POLICY).to_mapping())


class Installation(LoggedRequests):
    """A champion, and a rollout in shadow of a release that reads every view."""

    def __init__(self, home: Path, sample: Settings, of_champion: Sequence[ViewPin] = ()) -> None:
        super().__init__(home, sample, of_champion)
        self.settings.event_clock().tick(parse_event_time(START))
        first = rollouts.start(self.settings, MODEL, self.champion, actor="test", plan=PLAN)
        rollouts.approve(self.settings, first.id, "anna")
        rollouts.advance(self.settings, first.id)
        self.rollout = rollouts.start(self.settings, MODEL, self.release, actor="test", plan=PLAN).id
        rollouts.advance(self.settings, self.rollout)

    def with_terms(self) -> None:
        """Another rollout in its place, with the terms of the specs as they are now frozen into its plan."""
        rollouts.rollback(self.settings, self.rollout, "anna", "another begins")
        rollouts.advance(self.settings, self.rollout)
        terms = feature_terms.of_releases(self.settings, MODEL, [self.release, self.champion])
        plan = msgspec.structs.replace(PLAN, features=terms)
        self.rollout = rollouts.start(self.settings, MODEL, self.release, actor="test", plan=plan).id
        rollouts.advance(self.settings, self.rollout)

    def look(self, hours: float) -> rollouts.Look:
        return rollouts.look(self.settings, self.rollout, as_of_us=parse_event_time(START) + round(hours * HOUR_US))


@pytest.fixture
def installation(tmp_path: Path, sample_views: Settings) -> Installation:
    return Installation(tmp_path, sample_views)


def test_a_rollout_waits_for_stale_features_and_leaves_shadow_when_they_are_fresh_and_right(
    installation: Installation,
) -> None:
    with features.Publisher(installation.settings) as publisher:
        installation.answer(installation.rollout, START, 3, publish=publisher.tick)
        stale = installation.look(7)
        assert stale.decision is not None
        assert (stale.decision.kind, stale.decision.cause) == ("pause", "condition")
        assert [name.partition("__")[0] for name in stale.decision.metrics] == ["freshness of weather_at_origin"]
        assert "WeatherStale: weather_at_origin" in stale.decision.reason
        assert installation.look(7.1).decision is None
        publisher.tick(parse_event_time(START) + 7 * HOUR_US)
    fresh = installation.look(7.2)
    assert fresh.decision is not None
    assert (fresh.decision.cause, fresh.decision.next_stage) == ("stage_done", "canary_20")
    effects = rollouts.advance(installation.settings, installation.rollout)
    assert {effect.kind for effect in effects} >= {"notify"}
    notified = (installation.settings.root / "logs" / "notifications.jsonl").read_text()
    assert "WeatherStale" in notified
    shown = rollouts.show(installation.settings, installation.rollout)["decisions"][-1]
    assert {one["condition"] for one in shown["conditions"]} == {"freshness", "parity"}
    assert replay_rollout(installation.settings, installation.rollout).differences == []
    text = page(installation.settings, installation.rollout)
    assert "read online against the lake" in text
    assert "plane_late_rate_7d" in text


def test_what_is_wrong_with_a_view_that_the_champion_alone_reads_holds_no_challenger(
    tmp_path: Path, sample_views: Settings
) -> None:
    """The champion still reads the version from before a change; it is stale, and its rows are not the lake's."""
    before = ViewPin(
        view="weather_at_origin__0a1b",
        entity={"origin": "origin"},
        join_key_types={"origin": "string"},
        features=["temp"],
    )
    installation = Installation(tmp_path, sample_views, [before])
    start_us = parse_event_time(START)
    with features.Publisher(installation.settings) as publisher:
        publisher.tick(start_us)
        version = next(pin.view for pin in installation.pins if pin.view.startswith("weather"))
        with sqlite3.connect(installation.settings.feast_dir / "online_store.db") as connection:
            connection.execute(f'CREATE TABLE "slipway_{before.view}" AS SELECT * FROM "slipway_{version}"')
        installation.answer(installation.rollout, START, 7, publish=publisher.tick)
        publisher.tick(start_us + 7 * HOUR_US)
    left = installation.look(7)
    assert left.decision is not None
    assert (left.decision.cause, left.decision.next_stage) == ("stage_done", "canary_20")
    (report,) = parity.kept(installation.settings, MODEL, installation.rollout)
    assert before.view not in {view.view for view in report.views}


def answer_with_wrong_temperatures(installation: Installation) -> None:
    with features.Publisher(installation.settings) as publisher:
        publisher.tick(parse_event_time(START) + 3 * HOUR_US)
    version = next(pin.view for pin in installation.pins if pin.view.startswith("weather"))
    with sqlite3.connect(installation.settings.feast_dir / "online_store.db") as connection:
        message = struct.pack("<Bd", 0x29, 4.0)
        connection.execute(f"UPDATE \"slipway_{version}\" SET value = ? WHERE feature_name = 'temp'", (message,))
    installation.answer(installation.rollout, "2013-01-18T13:00:00Z", 3)


def test_a_rollout_whose_features_were_wrong_online_is_held_in_shadow(installation: Installation) -> None:
    answer_with_wrong_temperatures(installation)
    held = installation.look(6)
    assert held.decision is not None
    assert (held.decision.kind, held.decision.metrics, held.status) == ("hold", ("parity",), "held")
    assert "temp: request" in held.decision.reason
    assert replay_rollout(installation.settings, installation.rollout).differences == []


def test_bars_that_are_changed_in_the_specs_do_not_reach_a_rollout_that_runs(
    installation: Installation, tmp_path: Path
) -> None:
    include = tmp_path / "include"
    shutil.copytree(installation.settings.include_dir, include)
    installation.settings = installation.settings.model_copy(update={"include_dir": include})
    installation.with_terms()
    frozen = rollouts.load(installation.settings, installation.rollout)
    everything_is_allowed(include)
    answer_with_wrong_temperatures(installation)

    held = installation.look(6)
    assert held.decision is not None
    assert (held.decision.kind, held.decision.metrics) == ("hold", ("parity",))
    after_edit = rollouts.load(installation.settings, installation.rollout)
    assert (after_edit.policy_digest, after_edit.plan.digest()) == (frozen.policy_digest, frozen.policy_digest)
    begun_now = msgspec.structs.replace(
        PLAN, features=feature_terms.of_releases(installation.settings, MODEL, [installation.release])
    )
    assert begun_now.digest() != frozen.policy_digest
    assert conditions_of(installation, hours=30)["weather_at_origin"].fault


def everything_is_allowed(include: Path) -> None:
    """The bars of every view, and the model's gate, as somebody would set them to let a challenger pass."""
    for file in (include / "features").glob("*.yaml"):
        spec = yaml.safe_load(file.read_text())
        spec |= {"freshness": "365d event_time", "parity": {"wrong_share": 1.0, "late_share": 1.0}}
        file.write_text(yaml.safe_dump(spec))
    file = include / "models" / f"{MODEL}.yaml"
    spec = yaml.safe_load(file.read_text())
    spec["rollout"]["parity"] = {"gate": "report"}
    file.write_text(yaml.safe_dump(spec))


def conditions_of(installation: Installation, hours: float) -> dict[str, Fresh]:
    """What freshness would be measured as, by view."""
    state = rollouts.load(installation.settings, installation.rollout)
    found = measured(installation.settings, state, parse_event_time(START) + round(hours * HOUR_US))
    return {view_name(each.view): each for each in found if isinstance(each, Fresh)}


def test_a_spec_freezes_the_terms_of_the_views_that_champion_and_challenger_read(installation: Installation) -> None:
    plan = rollouts.planned(installation.settings, MODEL, installation.release)
    assert plan.features is not None
    assert set(plan.features.views) == {view_name(pin.view) for pin in installation.pins}
    weather = plan.features.views["weather_at_origin"]
    assert (weather.alert, weather.bars.wrong_share) == ("WeatherStale", 0.001)
    alone = rollouts.planned(installation.settings, MODEL, installation.champion)
    assert alone.features is not None
    assert alone.features.views == {}, "this release reads no view, and neither does the champion"
