"""The bus in both places it may lie: the folder of segments, and a topic of a real Kafka filled by the shipper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.contracts import segments, streams
from pipelines.contracts.streams import Gap, StreamKey
from tests.contract.bus_places import KEY, Folder, Place, Reader, Topic, labels
from tests.unit.collect.traffic import Worker


@pytest.fixture(params=["folder", "topic"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    folder = tmp_path / "bus"
    folder.mkdir()
    made: Place
    if request.param == "folder":
        made = Folder(folder, monkeypatch)
    else:
        made = Topic(folder, request.getfixturevalue("kafka").servers)
    yield made
    made.bus.close()


def test_frames_arrive_once_and_in_order_while_streams_grow_rotate_and_end(place: Place) -> None:
    reader = Reader(place.bus)
    one, two = Worker(place.folder, worker=0), Worker(place.folder, worker=1)
    for _ in range(3):
        labels(one, 5)
        labels(two, 3)
        one.rotate()
        place.carry()
        reader.all()
    assert reader.read == {KEY: list(range(15)), StreamKey("gw0", 1, 1): list(range(9))}
    assert not any(at.problem for at in reader.positions.values())


def test_an_empty_bus_is_read_as_empty(place: Place) -> None:
    assert Reader(place.bus).all() == {}
    assert place.bus.survey() == {}


def test_a_planned_portion_is_read_again_to_the_same_frames(place: Place) -> None:
    one, two = Worker(place.folder, worker=0), Worker(place.folder, worker=1)
    labels(one, 5)
    place.carry()
    reader = Reader(place.bus)
    reader.all()
    next_ns = {key: at.next_n for key, at in reader.positions.items()}
    labels(one, 4)
    labels(two, 2)
    place.carry()
    planned = place.bus.scan(reader.positions, reader.offsets)
    labels(one, 3)
    place.carry()
    assert planned.count == 6
    assert place.bus.reread(planned.ranges, next_ns) == planned.frames


def test_the_end_of_an_epoch_arrives_however_it_came_about(place: Place) -> None:
    closed, killed = Worker(place.folder, worker=0), Worker(place.folder, worker=1)
    labels(closed, 2)
    closed.close()
    labels(killed, 2)
    killed.tear()
    labels(Worker(place.folder, worker=1, epoch=2), 1)
    place.carry()
    reader = Reader(place.bus)
    reader.all()
    problems = {str(key): at.problem for key, at in reader.positions.items()}
    if isinstance(place, Folder):  # its collector waits half a minute for the killed writer's last words
        assert problems.pop("gw0/1-1") == ""
    else:
        assert problems.pop("gw0/1-1") == "ended: torn tail of 40 bytes"
    assert problems == {"gw0/0-1": "ended: read to its end", "gw0/1-2": ""}


def test_a_lost_event_is_a_gap(place: Place) -> None:
    worker = Worker(place.folder)
    labels(worker, 2)
    worker.skip()
    labels(worker, 2)
    place.carry()
    reader = Reader(place.bus)
    assert reader.all() == {KEY: [0, 1, 3, 4]}
    assert reader.gaps == [Gap(KEY, 2, 2)]
    assert sorted(place.bus.survey()[KEY].counters) == [0, 1, 3, 4]


def test_damage_stops_its_stream_with_the_reason_and_no_other(place: Place) -> None:
    worker = Worker(place.folder)
    labels(worker, 2)
    at = worker.path.stat().st_size
    labels(worker, 2)
    data = bytearray(worker.path.read_bytes())
    data[at + 30] ^= 0xFF
    worker.path.write_bytes(data)
    labels(Worker(place.folder, worker=1), 2)
    place.carry()
    reader = Reader(place.bus)
    assert reader.all() == {KEY: [0, 1], StreamKey("gw0", 1, 1): [0, 1]}
    assert streams.stands_still(reader.positions[KEY])
    assert reader.positions[KEY].problem == f"damaged frame at byte {at} with good frames behind it"


def test_an_epoch_that_was_closed_and_lost_its_last_frame_is_not_read_to_its_end(place: Place) -> None:
    worker = Worker(place.folder)
    labels(worker, 4)
    worker.close()
    whole = worker.path.read_bytes()
    *_, before, _last = segments.read_frames(whole)
    worker.path.write_bytes(whole[: before.end])
    place.carry()
    reader = Reader(place.bus)
    reader.all()
    assert reader.positions[KEY].problem == "frames 3..3 are missing at its end"
