"""How far a streamed view is: for its freshness, for materialisation beside the stream, for rows that come again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import open_online, readable_through
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import feature_catalogue, features, streams
from tests import streamed_project
from tests.streamed_project import expected_online, latest, online, rebuilt

VIEW, DATASET = "weather_at_origin", "weather"
MINUTE_US = 60_000_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    include = streamed_project.write(tmp_path, {VIEW: (DATASET, True)})
    return Settings(home=tmp_path / "home", include_dir=include, clock="replay")


@pytest.fixture
def messages(settings: Settings) -> list[Message]:
    return streamed_project.messages(settings.include_dir, DATASET)


def version(settings: Settings) -> str:
    return load_view(settings.include_dir, VIEW).feast_name(settings.include_dir)


def freshness(settings: Settings, now_us: int) -> feature_catalogue.Freshness:
    settings.event_clock().tick(now_us)
    return feature_catalogue.freshness(settings, load_view(settings.include_dir, VIEW), version(settings))


def lose_online_rows(settings: Settings) -> None:
    """What a Redis server does that comes back without its disk."""
    with open_online(settings) as store:
        store.drop(version(settings), list(load_view(settings.include_dir, VIEW).features))


def test_a_streamed_view_is_as_fresh_as_its_newest_row_and_ages_from_there(
    settings: Settings, messages: list[Message]
) -> None:
    came = messages[29].time_us
    with streams.Feed(settings, DATASET) as feed:
        feed.apply(messages[:30])
    assert freshness(settings, came).lag_s == 0
    later = freshness(settings, came + 6 * 3_600_000_000)
    assert later.lag_s is not None
    # Its rows bear the stamp at which a build would have them readable: two steps of the cadence at most.
    step_s = load_view(settings.include_dir, VIEW).publish_every.us / 1e6
    assert 6 * 3_600 - 2 * step_s <= later.lag_s <= 6 * 3_600


def test_a_stream_that_has_taken_everything_is_fresh_though_nothing_comes(
    settings: Settings, messages: list[Message]
) -> None:
    quiet_us = messages[29].time_us + 6 * 3_600_000_000
    with streams.Feed(settings, DATASET) as feed:
        feed.caught_up(quiet_us)
        assert readable_through(settings, version(settings)) is None  # a view without rows is not fresh
        feed.apply(messages[:30])
        before = online(settings, VIEW)
        feed.caught_up(quiet_us)
        feed.caught_up(quiet_us - MINUTE_US)
        assert freshness(settings, quiet_us).lag_s == 0
        assert online(settings, VIEW) == before
        feed.apply(messages[30:])  # of times before that
    assert online(settings, VIEW) == expected_online(settings, VIEW)


def test_what_is_refused_counts_as_taken(settings: Settings, messages: list[Message]) -> None:
    source = messages[0].source
    taken = [one for one in messages if one.source == source][:20]
    with streams.Feed(settings, DATASET) as feed:
        feed.apply(taken)
        feed.apply([Message(b"{", taken[-1].time_us, source, 20), taken[0]._replace(offset=21)])
        assert feed.applied(source) == 22
    with streams.Feed(settings, DATASET) as feed:
        assert feed.applied(source) == 22


def test_a_materialisation_beside_a_stream_neither_repeats_nor_loses(
    settings: Settings, messages: list[Message]
) -> None:
    far_us = messages[-1].time_us + 10 * 3_600_000_000
    half = len(messages) // 2
    with streams.Feed(settings, DATASET) as feed:
        feed.apply(messages[:half])
        before = online(settings, VIEW)
        assert features.materialise(settings, VIEW, far_us).values == 0
        assert online(settings, VIEW) == before
        feed.apply(messages[half:])
    assert features.materialise(settings, VIEW, far_us).values == 0
    assert online(settings, VIEW) == expected_online(settings, VIEW)


@pytest.mark.parametrize("by", ["the stream that runs", "a stream that starts", "a materialisation"])
def test_rows_that_the_online_store_has_lost_are_written_again(
    settings: Settings, messages: list[Message], by: str
) -> None:
    last = messages[-1:]
    with streams.Feed(settings, DATASET) as feed:
        feed.apply(messages[:-1])
        lose_online_rows(settings)
        if by == "the stream that runs":
            feed.apply(last)
    if by == "a materialisation":
        assert features.materialise(settings, VIEW, last[0].time_us + 10 * 3_600_000_000).values > 0
    with streams.Feed(settings, DATASET) as feed:
        if by != "the stream that runs":
            feed.apply(last)
    assert online(settings, VIEW) == expected_online(settings, VIEW)


def test_a_message_sent_again_is_refused_however_old_it_is(settings: Settings, messages: list[Message]) -> None:
    again = [one._replace(source=f"{DATASET}@test/9", offset=n) for n, one in enumerate(messages[:20])]
    with streams.Feed(settings, DATASET) as feed:
        feed.apply(messages)
    with streams.Feed(settings, DATASET) as feed:  # it begins with the rows that new ones can touch
        told = feed.apply(again)
    assert (told.rows, told.refused) == (0, 20)
    assert DeltaLake(settings.lake).read("datasets/weather").num_rows == len(messages)
    assert latest(settings, VIEW) == rebuilt(settings, VIEW)
