"""The collector's order and numbers."""

from __future__ import annotations

import random

from pipelines.collect.numbering import BLOCK, Counters, merge, number
from pipelines.contracts.events import Assignment, Event, EventId, Label


def label(worker: int, n: int, wall_us: int) -> Label:
    return Label(id=EventId("gw0", worker, 1, n), model="m", request_id="q", value=1.0, event_us=0, wall_us=wall_us)


def assigned(n: int, request: str, *, rollout: str | None = "m-r1", retry: bool = False) -> Assignment:
    return Assignment(
        id=EventId("gw0", 0, 1, n),
        model="m",
        request_id=request,
        event_us=n,
        wall_us=n,
        arm="champion",
        share_ppm=0,
        salt="",
        unit=request,
        mode="shadow",
        stage="shadow",
        rollout_id=rollout,
        route_version=1,
        champion="c",
        retry=retry,
    )


def test_streams_are_merged_by_wall_time_and_each_keeps_its_own_order() -> None:
    one = [label(0, 0, 10), label(0, 1, 5), label(0, 2, 30)]  # its clock steps back once
    two = [label(1, 0, 7), label(1, 1, 20)]
    merged = [(event.id.worker, event.id.n) for event in merge([one, two])]
    assert merged == [(1, 0), (0, 0), (0, 1), (1, 1), (0, 2)]


def test_the_order_does_not_depend_on_the_order_in_which_streams_were_read() -> None:
    rng = random.Random(3)
    parts: list[list[Event]] = [[label(w, n, rng.randrange(50)) for n in range(20)] for w in range(4)]
    first = [event.id for event in merge(parts)]
    rng.shuffle(parts)
    assert [event.id for event in merge(parts)] == first


def test_repeated_requests_of_a_rollout_are_marked_and_take_no_rollout_number() -> None:
    counters = Counters(seq={"m": 7}, rollout_seq={"m-r1": 2})
    events = [assigned(0, "a"), assigned(1, "b"), assigned(2, "a"), assigned(3, "old"), assigned(4, "c", retry=True)]
    numbered, _ = number(events, counters, {"m-r1": {"old"}})
    assert [(item.seq, item.rollout_seq, item.duplicate) for item in numbered] == [
        (8, 3, False),
        (9, 4, False),
        (10, None, True),
        (11, None, True),
        (12, None, True),
    ]
    assert counters == Counters(seq={"m": 12}, rollout_seq={"m-r1": 4})


def test_requests_without_a_rollout_are_numbered_in_their_model_alone() -> None:
    numbered, _ = number([assigned(0, "a", rollout=None), assigned(1, "a", rollout=None)], Counters(), {})
    assert [(item.seq, item.rollout_seq, item.duplicate) for item in numbered] == [(1, None, False), (2, None, False)]


def test_a_block_ends_at_every_five_hundredth_request() -> None:
    counters = Counters()
    events = [assigned(n, f"q{n}") for n in range(2 * BLOCK + 1)]
    _, first = number(events[:BLOCK], counters, {})
    _, second = number(events[BLOCK:], counters, {})
    assert [(block.block, block.last_rollout_seq, block.event_us) for block in first + second] == [
        (0, BLOCK, BLOCK - 1),
        (1, 2 * BLOCK, 2 * BLOCK - 1),
    ]
