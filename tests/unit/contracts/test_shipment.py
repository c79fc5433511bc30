"""The log on a topic: however messages come, frames are read once, in order, and none is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts import segments, shipment
from pipelines.contracts.errors import ContractError, TerminalError
from pipelines.contracts.kafka import connection
from pipelines.contracts.shipment import Message, cut, take
from pipelines.contracts.streams import Gap, Position, StreamKey, finished, stands_still

KEY = StreamKey("gw/a", 0, 7)
numbers = st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted)


def written(counters: list[int]) -> bytes:
    return b"".join(segments.frame(n, b"x" * (n * 7 % 50)) for n in counters)


def read(messages: list[Message], position: Position) -> tuple[Position, list[int], list[Gap]]:
    found: list[int] = []
    gaps: list[Gap] = []
    for message in messages:
        taken = take(position, message)
        position = taken.position
        found += [frame.n for frame in taken.frames]
        gaps += taken.gaps
    return position, found, gaps


@given(counters=numbers, max_bytes=st.integers(1, 300), chosen=st.lists(st.integers(0, 200), max_size=40))
def test_any_messages_and_then_all_of_them_give_every_frame_once_in_order(
    counters: list[int], max_bytes: int, chosen: list[int]
) -> None:
    messages = list(cut(KEY, written(counters), 0, max_bytes))
    assert b"".join(message.value for message in messages) == written(counters), "byte for byte"
    thrown = [messages[index % len(messages)] for index in chosen]
    position, found, gaps = read([*thrown, *messages], Position(key=KEY))
    assert found == counters
    lost = [n for gap in gaps for n in range(gap.first_n, gap.last_n + 1)]
    assert sorted(lost + counters) == list(range(counters[-1] + 1)), "what the log lacks, and nothing else, is a gap"
    assert (position.next_n, position.problem) == (counters[-1] + 1, "")


@given(counters=numbers, max_bytes=st.integers(1, 300), note=st.sampled_from(["", "ended: torn tail of 3 bytes"]))
def test_a_message_is_the_same_behind_the_wire(counters: list[int], max_bytes: int, note: str) -> None:
    for message in [*cut(KEY, written(counters), 0, max_bytes), Message(KEY, 5, b"", note)]:
        assert shipment.parse(message.wire_key(), message.value, message.headers()) == message


def test_the_end_counts_when_everything_before_it_is_there() -> None:
    end = Message(KEY, 3, b"", "ended: read to its end")
    early, _, _ = read([end], Position(key=KEY))
    assert stands_still(early)
    assert early.problem == "frames 0..2 have not arrived"
    frames = list(cut(KEY, written([0, 1, 2]), 0, 1000))
    whole, _, _ = read([*frames, end], early)
    assert finished(whole)
    again, found, _ = read(frames, whole)
    assert finished(again), "a repeat changes nothing"
    assert found == []


def test_damage_that_the_shipper_saw_stands_until_the_stream_goes_on() -> None:
    damage = Message(KEY, 1, b"", "damaged frame at byte 40 with good frames behind it")
    position, _, _ = read([*cut(KEY, written([0]), 0, 1000), damage], Position(key=KEY))
    assert position.problem == damage.note
    mended, found, _ = read(list(cut(KEY, written([1]), 1, 1000)), position)
    assert (mended.problem, found) == ("", [1])
    late, _, _ = read([damage], mended)
    assert late.problem == "", "a note of before says nothing of now"


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (None, [("slipway", b"1"), ("after", b"0")]),
        (b"gw0/0", [("slipway", b"1"), ("after", b"0")]),
        (b"gw0/0/x", [("slipway", b"1"), ("after", b"0")]),
        (b"gw0/0/1", [("slipway", b"2"), ("after", b"0")]),
        (b"gw0/0/1", [("slipway", b"1"), ("after", b"-1")]),
        (b"gw0/0/1", [("after", b"0")]),
        (b"gw0/0/1", None),
        (b"\xff/0/1", [("slipway", b"1"), ("after", b"0")]),
    ],
)
def test_what_no_shipper_sent_is_refused(key: bytes | None, headers: shipment.Headers | None) -> None:
    with pytest.raises(ContractError, match="message on the bus"):
        shipment.parse(key, b"", headers)


def test_properties_of_kafka_come_from_a_file_and_a_bad_line_is_named_without_its_secret(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text("# TLS\nsecurity.protocol = SASL_SSL\n\nsasl.password=a=b\n")
    options = connection("a:1,b:2", "t", str(file)).options
    assert options["bootstrap.servers"] == "a:1,b:2"
    assert (options["security.protocol"], options["sasl.password"]) == ("SASL_SSL", "a=b")
    file.write_text("sasl.password hunter2\n")
    with pytest.raises(TerminalError, match=r"kafka.properties:1; got no '='") as refused:
        connection("a:1", "t", str(file))
    assert "hunter2" not in str(refused.value)
    with pytest.raises(TerminalError, match="SLIPWAY_KAFKA_CONFIG"):
        connection("a:1", "t", str(tmp_path / "none"))
