"""Messages to views: whatever their order, their batches and the process's deaths, the views are those of a build."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.contracts.errors import TransientError
from pipelines.datasets.messages import Message
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names
from pipelines.wiring import datasets, erasure, features, streams
from tests import odd_days, streamed_project
from tests.leak_oracle import given, load_raw, recomputed, requests_near
from tests.streamed_project import expected_online, latest, online, rebuilt


class Killed(BaseException):
    """What a killed process does: nothing more."""


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Settings]:
    def make(views: dict[str, tuple[str, bool]] = streamed_project.BY_VIEW) -> Settings:
        include = streamed_project.write(tmp_path, views)
        return Settings(home=tmp_path / "home", include_dir=include, clock="replay")

    return make


def publish_others(settings: Settings) -> None:
    """The datasets that do not stream, as a nightly run publishes them."""
    odd_days.publish(settings, only={"planes", "flights_scheduled"})


def in_batches(messages: list[Message], draw: random.Random) -> list[list[Message]]:
    """Cut anywhere; partitions overtake one another by a few batches, each keeps its own order."""
    cut: list[list[Message]] = []
    left = list(messages)
    while left:
        size = draw.randrange(1, 60)
        cut.append(left[:size])
        left = left[size:]
    for at in range(len(cut) - 1):
        # What one partition has in this batch comes with the next one: it lags.
        behind = [one for one in cut[at] if one.source.endswith("/1")]
        if draw.random() < 0.5:
            cut[at] = [one for one in cut[at] if not one.source.endswith("/1")]
            cut[at + 1] = behind + cut[at + 1]
    return [batch for batch in cut if batch]


@pytest.mark.parametrize("dataset", streamed_project.STREAMED)
def test_a_stream_cut_anywhere_gives_what_a_build_of_everything_gives(
    project: Callable[..., Settings], dataset: str
) -> None:
    settings = project()
    publish_others(settings)
    draw = random.Random(dataset)
    messages = streamed_project.messages(settings.include_dir, dataset)
    with streams.Feed(settings, dataset) as feed:
        for batch in in_batches(messages, draw):
            feed.apply(batch)
    rows = DeltaLake(settings.lake).read(datasets.table_of(dataset))
    assert rows.num_rows == len(messages)
    for view in streams.streamed(settings)[dataset]:
        assert len(latest(settings, view.name)) > 50
        assert latest(settings, view.name) == rebuilt(settings, view.name), view.name
        assert online(settings, view.name) == expected_online(settings, view.name), view.name


@pytest.mark.parametrize("dataset", streamed_project.STREAMED)
def test_no_streamed_feature_knows_what_came_later(project: Callable[..., Settings], dataset: str) -> None:
    settings = project()
    publish_others(settings)
    messages = streamed_project.messages(settings.include_dir, dataset)
    with streams.Feed(settings, dataset) as feed:
        for at in range(0, len(messages), 70):
            feed.apply(messages[at : at + 70])
    with connect() as connection:
        load_raw(connection, settings, odd_days.END_US)
        for spec in streams.streamed(settings)[dataset]:
            table = features.table_of(spec.feast_name(settings.include_dir))
            rows = pa.Table.from_pylist(latest(settings, spec.name), DeltaLake(settings.lake).schema(table))
            asked = requests_near(spec, rows, 30, 2 * 3_600_000_000)
            answers = given(connection, spec, rows, asked)
            assert sum(any(value is not None for value in one.values()) for one in answers) > 20
            assert answers == recomputed(connection, settings.include_dir, spec, asked), spec.name


def test_every_view_of_the_project_is_held_to_that() -> None:
    assert sorted(streamed_project.BY_VIEW) == names(PROJECT / "include", "features")


def test_a_feed_that_dies_anywhere_loses_and_repeats_nothing(
    project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit and every online write is once the last thing the process does, or the one it does not do."""
    settings = project({"carrier_punctuality": ("flights_landed", True)})
    good = streamed_project.messages(settings.include_dir, "flights_landed")[:90]
    broken = [message._replace(value=b"{") if n % 9 == 0 else message for n, message in enumerate(good)]
    steps = {"left": 0, "after": False}

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            steps["left"] -= 1
            if steps["left"] == 0 and not steps["after"]:
                raise Killed
            answer = function(*given, **named)
            if steps["left"] == 0:
                raise Killed
            return answer

        return step

    from pipelines.adapters.feast_sqlite import FeastSqlite

    monkeypatch.setattr(DeltaLake, "append_marked", dying(DeltaLake.append_marked))
    monkeypatch.setattr(FeastSqlite, "write", dying(FeastSqlite.write))
    for number in range(9):
        batch = broken[10 * number : 10 * number + 10]
        steps.update(left=number % 4 + 1, after=number >= 4)
        if number < 8:
            with pytest.raises(Killed), streams.Feed(settings, "flights_landed") as feed:
                feed.apply(batch)
        steps.update(left=0)
        with streams.Feed(settings, "flights_landed") as feed:
            feed.apply(batch)
    lake = DeltaLake(settings.lake)
    ids = sorted(lake.read("datasets/flights_landed", ["flight_id"]).column("flight_id").to_pylist())
    assert ids == sorted(json.loads(message.value)["flight_id"] for message in broken if message.value != b"{")
    assert lake.read("quarantine/flights_landed").num_rows == 10
    assert latest(settings, "carrier_punctuality") == rebuilt(settings, "carrier_punctuality")
    assert online(settings, "carrier_punctuality") == expected_online(settings, "carrier_punctuality")


def test_what_cannot_be_used_is_set_aside_with_reasons(project: Callable[..., Settings]) -> None:
    settings = project({"weather_at_origin": ("weather", True)})
    good = {"origin": "EWR", "observed_at": "2013-03-10T07:00:00Z", "temp": 40}
    at = 1_362_900_600_000_000  # 07:30Z, when it is known, half an hour after it was observed

    def message(offset: int, later_s: int = 0, **changes: Any) -> Message:
        return Message(json.dumps(good | changes).encode(), at + later_s * 1_000_000, "weather@test/0", offset)

    batch = [
        message(0),
        message(1),
        message(2, origin="JFK", temp="warm"),
        message(3, origin="JFK", temp=500),
        message(4, origin="JFK", observed_at=None),
        message(5, origin="JFK", later_s=7_201),
        message(6, origin="JFK", later_s=-7_201),
        message(7, origin="BOS"),
        Message(b"\xff{", at, "weather@test/0", 8),
        Message(b"[1]", at, "weather@test/0", 9),
        message(10, origin="JFK", later_s=7_200),
    ]
    sent: list[streams.Letter] = []
    with streams.Feed(settings, "weather", sent.extend) as feed:
        report = feed.apply(batch)
        assert (report.rows, report.refused) == (2, 9)
        assert feed.apply(batch).refused == 0  # given again
    told = {letter.message.offset: letter.reason for letter in sent}
    assert told.pop(1) == "its key is already published"
    assert told.pop(2).startswith("temp: 'warm' is not a number")
    assert told.pop(3) == "temp is below -40 or above 130"
    assert "observed_at is missing" in told.pop(4)
    assert told.pop(5) == "late by 2h1s; the watermark is 2h event_time"
    assert told.pop(6) == "early by 2h1s; the watermark is 2h event_time"
    assert "EWR" in told.pop(7)
    assert told.pop(8).startswith("not JSON")
    assert told.pop(9) == "not a JSON object, but list"
    assert told == {}
    kept = DeltaLake(settings.lake).read("quarantine/weather")
    assert sorted(kept.column("reason").to_pylist()) == sorted(letter.reason for letter in sent)


def test_a_late_row_is_known_when_it_came_and_changes_nothing_that_could_be_read_before(
    project: Callable[..., Settings],
) -> None:
    settings = project({"carrier_punctuality": ("flights_landed", True)})
    messages = streamed_project.messages(settings.include_dir, "flights_landed")[:40]
    with streams.Feed(settings, "flights_landed") as feed:
        feed.apply(messages[:-1])
        before = latest(settings, "carrier_punctuality")
        feed.apply(messages[-1:])
    row = DeltaLake(settings.lake).read("datasets/flights_landed").sort_by("known_at").to_pylist()[-1]
    assert int(row["known_at"].timestamp() * 1e6) == messages[-1].time_us
    unchanged = [one for one in latest(settings, "carrier_punctuality") if one["event_timestamp"] <= row["known_at"]]
    assert unchanged == [one for one in before if one["event_timestamp"] <= row["known_at"]]


def test_only_one_process_feeds_a_dataset(project: Callable[..., Settings]) -> None:
    settings = project({"weather_at_origin": ("weather", True)})
    with streams.Feed(settings, "weather"), pytest.raises(TransientError, match="another process feeds it"):
        streams.Feed(settings, "weather")


def test_a_new_version_of_a_view_begins_with_what_the_dataset_holds(project: Callable[..., Settings]) -> None:
    settings = project({"weather_at_origin": ("weather", True)})
    messages = streamed_project.messages(settings.include_dir, "weather")
    with streams.Feed(settings, "weather") as feed:
        feed.apply(messages[:100])
    file = settings.include_dir / "transforms" / "weather_at_origin.py"
    file.write_text(file.read_text() + "\n# another version\n")
    with streams.Feed(settings, "weather") as feed:
        feed.apply(messages[100:])
    assert latest(settings, "weather_at_origin") == rebuilt(settings, "weather_at_origin")
    assert online(settings, "weather_at_origin") == expected_online(settings, "weather_at_origin")


def test_views_that_builds_have_made_until_now_go_on_as_streams(
    project: Callable[..., Settings], tmp_path: Path
) -> None:
    """A build stops at the last stamp that is due; what was known by then and is due later is the stream's to make."""
    settings = project()
    publish_others(settings)
    messages = streamed_project.messages(settings.include_dir, "flights_landed")
    half = len(messages) // 2
    elsewhere = settings.model_copy(update={"home": tmp_path / "elsewhere"})
    publish_others(elsewhere)
    with streams.Feed(elsewhere, "flights_landed") as feed:
        feed.apply(messages[:half])
    table = datasets.table_of("flights_landed")
    rows = DeltaLake(elsewhere.lake).read(table)
    known_us = messages[half - 1].time_us
    DeltaLake(settings.lake).append(table, rows, partition_by=["day"], txn=(datasets.INGEST, known_us))
    by_builds = settings.model_copy(update={"include_dir": PROJECT / "include"})
    views = [view.name for view in streams.streamed(settings)["flights_landed"]]
    for view in views:
        features.publish(by_builds, features.build(by_builds, view, known_us))
        features.materialise(by_builds, view, known_us)
    with streams.Feed(settings, "flights_landed") as feed:
        feed.apply(messages[half:])
    for view in views:
        assert latest(settings, view) == rebuilt(settings, view), view
        assert online(settings, view) == expected_online(settings, view), view


def test_a_build_of_a_streamed_view_adds_nothing(project: Callable[..., Settings]) -> None:
    settings = project({"weather_at_origin": ("weather", True)})
    messages = streamed_project.messages(settings.include_dir, "weather")
    with streams.Feed(settings, "weather") as feed:
        feed.apply(messages)
    before = pa.concat_tables([DeltaLake(settings.lake).read("datasets/weather")]).num_rows
    assert datasets.ingest(settings, "weather", odd_days.END_US).rows == 0
    ref = features.build(settings, "weather_at_origin", odd_days.END_US)
    assert ref.empty
    assert features.publish(settings, ref).rows == 0
    assert DeltaLake(settings.lake).read("datasets/weather").num_rows == before


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict[str, Any]]]:
    """`slipway push` over a file of objects: its exit code and what it prints."""

    def push(settings: Settings, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        from typer.testing import CliRunner

        from pipelines.cli.main import app

        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
        for name in ("home", "include_dir", "clock"):
            monkeypatch.setenv(f"SLIPWAY_{name.upper()}", str(getattr(settings, name)))
        done = CliRunner().invoke(app, ["push", "weather_at_origin", str(file), "--json"])
        assert done.exit_code in (0, 1), done.output
        return done.exit_code, json.loads(done.stdout)

    return push


def test_a_push_has_the_effect_of_a_stream_and_takes_a_row_once(
    project: Callable[..., Settings], pushed: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    settings = project({"weather_at_origin": ("weather", True)})
    observed = [{"origin": "JFK", "observed_at": f"2013-03-10T0{hour}:00:00Z", "temp": 40 + hour} for hour in range(5)]
    settings.event_clock().tick(1_362_900_600_000_000)  # 07:30Z
    code, told = pushed(settings, [*observed[3:], {"origin": "JFK"}])
    assert (code, told["rows"], told["refused"]) == (1, 0, 3)  # 03:00 and 04:00 are more than two hours late
    settings.event_clock().tick(1_362_900_600_000_000 - 2 * 3_600_000_000)
    assert pushed(settings, observed[3:])[0] == 0
    code, told = pushed(settings, observed[3:])
    assert (code, told["reasons"]) == (1, {"its key is already published": 2})
    assert latest(settings, "weather_at_origin") == rebuilt(settings, "weather_at_origin")
    assert online(settings, "weather_at_origin") == expected_online(settings, "weather_at_origin")


def test_what_a_push_that_died_has_left_is_done_by_the_next(
    project: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.adapters.feast_sqlite import FeastSqlite
    from pipelines.wiring.pushing import push

    settings = project({"carrier_punctuality": ("flights_landed", True)})
    messages = streamed_project.messages(settings.include_dir, "flights_landed")[:30]
    lines = [message.value.decode() for message in messages]
    settings.event_clock().tick(messages[0].time_us)
    push(settings, "carrier_punctuality", lines[:3])
    with monkeypatch.context() as dying:

        def die(*_: Any, **__: Any) -> None:
            raise Killed

        dying.setattr(FeastSqlite, "write", die)
        with pytest.raises(Killed):
            push(settings, "carrier_punctuality", lines[3:6])
    assert len(latest(settings, "carrier_punctuality")) < len(rebuilt(settings, "carrier_punctuality"))
    assert push(settings, "carrier_punctuality", lines[3:6]).reasons == {"its key is already published": 3}
    assert latest(settings, "carrier_punctuality") == rebuilt(settings, "carrier_punctuality")
    assert online(settings, "carrier_punctuality") == expected_online(settings, "carrier_punctuality")


def test_an_erased_subject_neither_streams_on_nor_is_kept_in_a_letter(project: Callable[..., Settings]) -> None:
    settings = project({"carrier_punctuality": ("flights_landed", True)})
    settings = settings.model_copy(update={"pii_key": SecretStr("a key")})
    messages = streamed_project.messages(settings.include_dir, "flights_landed")[:120]
    carriers = [json.loads(message.value)["carrier"] for message in messages]
    one = carriers[0]
    subject = erasure.subject_of(settings, "carrier", [one])
    letters: list[streams.Letter] = []
    with streams.Feed(settings, "flights_landed") as feed:
        feed.apply(messages[:60])
        with pytest.raises(TransientError, match="another process feeds it"):
            erasure.erase(settings, subject, "asked", "anna")  # it holds rows in memory
    done = erasure.erase(settings, subject, "asked", "anna")
    assert done is not None
    assert done.decided.tables["datasets/flights_landed"] == carriers[:60].count(one)
    with streams.Feed(settings, "flights_landed", letters.extend) as feed:
        feed.apply(messages[60:])
    assert len(letters) == carriers[60:].count(one) > 0
    assert {(letter.reason, letter.value) for letter in letters} == {("its subject was erased (erasure-1)", None)}
    left = DeltaLake(settings.lake).read(datasets.table_of("flights_landed"), ["carrier"]).column("carrier").to_pylist()
    assert sorted(left) == sorted(carrier for carrier in carriers if carrier != one)
    assert one not in {row["carrier"] for row in latest(settings, "carrier_punctuality")}
