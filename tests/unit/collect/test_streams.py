"""How far a stream may be read, and what stops it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import segments, streams
from pipelines.contracts.events import Label
from pipelines.contracts.segment_folder import reread, scan
from pipelines.contracts.streams import Position, Scan, StreamKey
from tests.unit.collect.traffic import Worker

KEY = StreamKey("gw0", 0, 1)


def labels(worker: Worker, count: int) -> None:
    for _ in range(count):
        worker.append(Label, model="m", request_id=f"q{worker.n}", value=1.0)


def counters(found: Scan) -> list[int]:
    return [frame.n for part in found.frames for frame in part]


def test_reading_goes_on_where_it_stopped_over_segments(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 3)
    first = scan(tmp_path, {})
    labels(worker, 2)
    worker.rotate()
    labels(worker, 4)
    second = scan(tmp_path, first.positions)
    assert counters(first) == [0, 1, 2]
    assert counters(second) == [3, 4, 5, 6, 7, 8]
    assert scan(tmp_path, second.positions).count == 0


def test_a_planned_range_is_read_again_to_the_same_frames(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 3)
    first = scan(tmp_path, {})
    labels(worker, 3)
    second = scan(tmp_path, first.positions)
    labels(worker, 3)
    again = reread(tmp_path, second.ranges, {KEY: first.positions[KEY].next_n})
    assert again == second.frames


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 700), max_size=6))
def test_a_file_read_while_it_grows_gives_every_frame_once(
    cuts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    bus = tmp_path_factory.mktemp("bus")
    worker = Worker(bus)
    labels(worker, 8)
    whole = worker.path.read_bytes()
    seen: list[int] = []
    positions: dict[StreamKey, Position] = {}
    for cut in [*sorted(cuts), len(whole)]:
        worker.path.write_bytes(whole[: max(cut, 0)])
        found = scan(bus, positions)
        assert not any(streams.stands_still(at) for at in found.positions.values())
        seen += counters(found)
        positions |= found.positions
    assert seen == list(range(8))


def test_a_torn_tail_of_an_ended_epoch_ends_the_stream(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    worker.tear()
    waiting = scan(tmp_path, {}, quiet_s=0).positions[KEY]
    assert waiting.problem == "", "its writer may be in the middle of the frame"
    labels(Worker(tmp_path, epoch=2), 1)
    ended = scan(tmp_path, {KEY: waiting}, quiet_s=0)
    assert ended.positions[KEY].problem == "ended: torn tail of 40 bytes"
    assert not streams.stands_still(ended.positions[KEY])
    assert counters(ended) == [0], "the next epoch is read"


def test_a_stream_whose_next_epoch_has_begun_is_not_ended_while_it_still_grows(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    labels(Worker(tmp_path, epoch=2), 1)
    first = scan(tmp_path, {})
    labels(worker, 1)
    assert counters(scan(tmp_path, first.positions)) == [2]


def test_a_closed_stream_is_not_looked_at_again(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    worker.close()
    first = scan(tmp_path, {})
    assert streams.finished(first.positions[KEY])
    assert scan(tmp_path, first.positions).positions == {}


@pytest.mark.parametrize("byte", ["length", "payload"])
def test_a_damaged_frame_with_good_ones_behind_it_stops_its_stream_and_no_other(tmp_path: Path, byte: str) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    at = worker.path.stat().st_size
    labels(worker, 3)
    data = bytearray(worker.path.read_bytes())
    data[at + (1 if byte == "length" else 30)] ^= 0xFF
    worker.path.write_bytes(data)
    other = Worker(tmp_path, worker=1)
    labels(other, 2)
    found = scan(tmp_path, {})
    assert counters(found) == [0, 1, 0, 1]
    assert found.positions[KEY].problem == f"damaged frame at byte {at} with good frames behind it"
    assert streams.stands_still(found.positions[KEY])
    labels(worker, 1)
    assert scan(tmp_path, found.positions).count == 0, "it is never skipped"


def test_lost_counters_are_a_gap_and_repeated_ones_are_dropped(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    worker.skip()
    worker.skip()
    labels(worker, 1)
    frame = worker.path.read_bytes()[len(segments.MAGIC) :]
    with worker.path.open("ab") as handle:
        handle.write(frame)  # the same bytes delivered again
    found = scan(tmp_path, {})
    assert counters(found) == [0, 1, 4]
    assert found.gaps == [streams.Gap(KEY, 2, 3)]
    assert found.positions[KEY].repeats == 3


def test_a_segment_left_behind_half_written_loses_nothing_when_the_next_takes_over_its_counter(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    labels(worker, 2)
    worker.tear()
    worker.rotate()
    labels(worker, 2)
    found = scan(tmp_path, {})
    assert counters(found) == [0, 1, 2, 3]
    assert found.gaps == []


def test_positions_survive_their_storage(tmp_path: Path) -> None:
    labels(Worker(tmp_path), 2)
    position = scan(tmp_path, {}).positions[KEY]
    assert msgspec.json.decode(msgspec.json.encode(position), type=Position) == position
