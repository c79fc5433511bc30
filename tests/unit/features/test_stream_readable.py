"""Under the wall clock a streamed row is readable when its stamp is due: until then the one before it stays."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipelines.adapters.feast_online import open_online, readable_through
from pipelines.contracts.clocks import to_us
from pipelines.contracts.release import ViewPin
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import features, streams
from pipelines.wiring.pushing import push
from serving.online_features.plan import ReadPlan, Wanted
from serving.online_features.sqlite_store import SqliteStore
from tests import streamed_project

VIEW, DATASET = "weather_at_origin", "weather"


def at(text: str) -> int:
    return to_us(datetime.fromisoformat(f"2013-03-10T{text}:00Z"))


class Wall:
    """The wall clock of a test."""

    now_us = 0

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    include = streamed_project.write(tmp_path, {VIEW: (DATASET, True)})
    return Settings(home=tmp_path / "home", include_dir=include, clock="wall")


@pytest.fixture
def wall() -> Wall:
    return Wall()


def observed(hour: str, temp: float, offset: int, came: str) -> Message:
    row = {"origin": "JFK", "observed_at": f"2013-03-10T{hour}:00Z", "temp": temp}
    return Message(json.dumps(row).encode(), at(came), "weather@test/0", offset)


def feed(settings: Settings, wall: Wall) -> streams.Feed:
    return streams.Feed(settings, DATASET, now=wall)


def take(feeding: streams.Feed, wall: Wall, *messages: Message) -> None:
    wall.now_us = messages[-1].time_us
    feeding.apply(messages)


FIRST = observed("05:00", 40, 0, came="05:30")
"""Readable from 07:00 on: known half an hour after it was observed, then the next step of an hour, and one more."""
SECOND = observed("06:00", 41, 1, came="06:30")
THIRD = observed("07:00", 42, 2, came="07:30")


def read(settings: Settings, at_us: int) -> tuple[Any, str]:
    """The temperature as the gateway reads it for a request of that time, and what is wrong with it."""
    spec = load_view(settings.include_dir, VIEW)
    pin = ViewPin(
        view=spec.feast_name(settings.include_dir),
        entity={"origin": "origin"},
        join_key_types=dict(spec.entity.keys),
        features=["temp"],
    )
    store = SqliteStore(settings.feast_dir / "online_store.db", budget_ms=10_000)
    (found,) = store.read(plan := ReadPlan({"r": [pin]}), [Wanted({"origin": ["JFK"]}, 1, at_us)])
    assert found.plan is plan
    (view,) = found.of("r")
    return view.logged.values[0][0], view.degraded


def test_a_row_replaces_the_one_before_it_at_its_stamp_and_none_is_ever_missing(settings: Settings, wall: Wall) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST)
        wall.now_us = at("07:00")
        feeding.write_due()
        for minutes in range(0, 181, 10):
            wall.now_us = at("07:00") + minutes * 60_000_000
            if minutes == 10:
                feeding.apply([SECOND])
            if minutes == 30:
                feeding.apply([THIRD])
            feeding.write_due()
            expected = 40 if minutes < 60 else 41 if minutes < 120 else 42
            assert read(settings, wall.now_us) == (expected, ""), minutes


def test_of_several_rows_that_come_due_together_the_newest_counts(settings: Settings, wall: Wall) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST, SECOND, THIRD)
        assert read(settings, wall.now_us) == (40, "")
        assert feeding.held_until_us == at("09:00")
        wall.now_us = at("09:00")
        feeding.write_due()
        assert read(settings, wall.now_us) == (42, "")
        assert feeding.held_until_us is None


def test_a_held_row_is_corrected_by_a_later_batch(settings: Settings, wall: Wall) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST, SECOND)
        take(feeding, wall, observed("06:20", 50, 2, came="06:50"))  # of the stamp of the second
        wall.now_us = at("08:00")
        feeding.write_due()
        assert read(settings, wall.now_us) == (50, "")


def test_a_batch_writes_what_has_become_due(settings: Settings, wall: Wall) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST, SECOND)
        wall.now_us = at("08:10")
        feeding.apply([THIRD])
        assert read(settings, wall.now_us) == (41, "")


def test_a_view_is_readable_as_far_as_its_rows_are_written(settings: Settings, wall: Wall) -> None:
    version = load_view(settings.include_dir, VIEW).feast_name(settings.include_dir)
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST)
        assert readable_through(settings, version) == at("05:30")
        assert features.built_through(settings, version) == at("07:00")
        wall.now_us = at("06:15")
        feeding.caught_up(wall.now_us)
        assert readable_through(settings, version) == at("06:15")
        wall.now_us = at("10:00")
        feeding.write_due()
        assert readable_through(settings, version) == at("07:00")  # nobody has said that nothing else came


@pytest.mark.parametrize("restarted", ["07:30", "08:00"], ids=["before the stamp", "at the stamp"])
@pytest.mark.parametrize("lost", [False, True], ids=["store whole", "store lost"])
def test_a_stream_that_is_killed_holds_its_rows_again(
    settings: Settings, wall: Wall, restarted: str, lost: bool
) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST)
        wall.now_us = at("07:10")
        feeding.apply([SECOND])  # what it holds goes with it
    if lost:
        spec = load_view(settings.include_dir, VIEW)
        with open_online(settings) as store:
            store.drop(spec.feast_name(settings.include_dir), list(spec.features))
    wall.now_us = at(restarted)
    with feed(settings, wall) as feeding:
        assert read(settings, wall.now_us) == (40 if restarted == "07:30" else 41, "")
        wall.now_us = at("08:00")
        feeding.write_due()
        assert read(settings, wall.now_us) == (41, "")


def test_a_materialisation_beside_a_stream_writes_what_is_due_and_no_more(settings: Settings, wall: Wall) -> None:
    with feed(settings, wall) as feeding:
        take(feeding, wall, FIRST, SECOND)
        assert features.materialise(settings, VIEW, at("07:00")).values == 7  # one row
        assert features.materialise(settings, VIEW, at("07:30")).values == 0
        assert read(settings, at("07:30")) == (40, "")
        wall.now_us = at("08:00")
        feeding.write_due()
    assert read(settings, at("08:00")) == (41, "")


def pushed_now(settings: Settings) -> str:
    path = settings.include_dir / "datasets" / f"{DATASET}.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), "arrival_delay": "0s event_time"}))
    return json.dumps({"origin": "JFK", "observed_at": datetime.now(UTC).isoformat(), "temp": 40})


def test_a_push_waits_until_its_rows_are_readable(tmp_path: Path) -> None:
    include = streamed_project.write(tmp_path, {VIEW: (DATASET, True)}, publish_every="100ms event_time")
    settings = Settings(home=tmp_path / "home", include_dir=include, clock="wall")
    assert push(settings, VIEW, [pushed_now(settings)]).due_us is None
    assert read(settings, settings.event_clock().event_now_us()) == (40, "")


def test_a_push_says_when_a_materialisation_makes_its_rows_readable(settings: Settings) -> None:
    before = settings.event_clock().event_now_us()
    done = push(settings, VIEW, [pushed_now(settings)])
    hour_us = int(timedelta(hours=1).total_seconds() * 1e6)
    assert done.due_us is not None
    assert before + hour_us <= done.due_us <= before + 2 * hour_us + 60_000_000
    assert read(settings, before)[1].endswith("missing")
    features.materialise(settings, VIEW, done.due_us)
    assert read(settings, done.due_us) == (40, "")
