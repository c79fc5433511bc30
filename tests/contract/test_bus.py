"""The bus in both places it may lie: the folder of segments, and a topic of a real Kafka filled by the shipper."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from pipelines.adapters import kafka_topics
from pipelines.adapters.kafka_bus import KafkaBus
from pipelines.collect.bus import Bus, SegmentBus
from pipelines.contracts import segment_folder, segments, streams
from pipelines.contracts.errors import TerminalError, TransientError
from pipelines.contracts.events import Label
from pipelines.contracts.kafka import Connection, connection
from pipelines.contracts.streams import Gap, Position, Scan, StreamKey
from serving.shipper import Shipper
from tests.kafka_broker import Broker
from tests.unit.collect.traffic import Worker

KEY = StreamKey("gw0", 0, 1)
_topics = itertools.count()


class Place(Protocol):
    folder: Path
    bus: Bus

    def carry(self) -> None:
        """Bring what was written to where the collector reads."""


class Folder:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bus: Bus = SegmentBus(folder)
        monkeypatch.setattr(segment_folder, "QUIET_S", 0.0)

    def carry(self) -> None:
        """It lies there already."""


class Topic:
    """A topic of its own, and the shipper that fills it."""

    def __init__(self, folder: Path, servers: str) -> None:
        self.folder = folder
        self.kafka = connection(servers, f"topic-{next(_topics)}")
        self.state = folder.parent / "positions.json"
        self.bus: Bus = KafkaBus(self.kafka)

    def carry(self) -> None:
        shipper = Shipper(self.folder, self.state, self.kafka, quiet_s=0.0)
        while shipper.once():
            pass
        shipper.close()

    def another(self) -> Connection:
        return self.kafka._replace(topic=f"topic-{next(_topics)}")


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


@pytest.fixture
def topic(kafka: Broker, tmp_path: Path) -> Iterator[Topic]:
    (tmp_path / "bus").mkdir()
    made = Topic(tmp_path / "bus", kafka.servers)
    yield made
    made.bus.close()


class Reader:
    """Reads on and on, as the collector does, and keeps what it has read."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.positions: dict[StreamKey, Position] = {}
        self.offsets: dict[str, int] = {}
        self.read: dict[StreamKey, list[int]] = {}
        self.gaps: list[Gap] = []

    def all(self) -> dict[StreamKey, list[int]]:
        """Read to the end; the counters of each stream in the order they came."""
        while True:
            before = (dict(self.positions), dict(self.offsets))
            found = patiently(lambda: self.bus.scan(self.positions, self.offsets))
            for part, frames in zip(found.ranges, found.frames, strict=True):
                self.read.setdefault(part.key, []).extend(frame.n for frame in frames)
            self.positions |= found.positions
            self.offsets |= found.offsets
            self.gaps += found.gaps
            if before == (self.positions, self.offsets):
                return self.read


def patiently(scan: Callable[[], Scan]) -> Scan:
    """As the collector does: a topic just made has no leaders for a moment."""
    for _ in range(50):
        try:
            return scan()
        except TransientError:
            time.sleep(0.1)  # until the broker answers again
    return scan()


def labels(worker: Worker, count: int, **more: Any) -> None:
    for _ in range(count):
        worker.append(Label, model="m", request_id=f"q{worker.n}", value=1.0, **more)


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


# --- the topic alone -------------------------------------------------------------------------------------------------


def test_what_a_killed_shipper_sends_again_is_read_once(topic: Topic) -> None:
    reader = Reader(topic.bus)
    worker = Worker(topic.folder)
    labels(worker, 3)
    topic.carry()
    sent = topic.state.read_bytes()
    labels(worker, 3)
    topic.carry()
    reader.all()
    topic.state.write_bytes(sent)  # killed after the brokers had it, before it was written down
    labels(worker, 2)
    topic.carry()
    assert reader.all() == {KEY: list(range(8))}
    assert reader.positions[KEY].repeats == 3
    topic.state.write_bytes(b"[{half a fi")
    topic.carry()
    assert reader.all() == {KEY: list(range(8))}
    assert max(topic.bus.survey()[KEY].counters) == 7


def test_a_portion_ends_between_messages_and_the_next_goes_on_there(topic: Topic) -> None:
    worker = Worker(topic.folder)
    for _ in range(10):
        labels(worker, 5)
        topic.carry()
    small = Reader(KafkaBus(topic.kafka, portion=500))
    assert small.all() == {KEY: list(range(50))}


def test_what_arrives_while_a_portion_is_read_is_not_skipped(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = [Worker(topic.folder, worker=number) for number in range(8)]

    def grow() -> None:
        for worker in workers:
            labels(worker, 2)
        topic.carry()

    real = KafkaBus._watermarks
    rounds = iter(range(3))

    def outdated(bus: KafkaBus) -> dict[int, tuple[int, int]]:
        marks = real(bus)
        if next(rounds, None) is not None:
            grow()
        return marks

    grow()
    with monkeypatch.context() as patch:
        patch.setattr(KafkaBus, "_watermarks", outdated)
        reader = Reader(topic.bus)
        reader.all()
    assert reader.all() == {StreamKey("gw0", number, 1): list(range(8)) for number in range(8)}


@pytest.mark.parametrize("seed", range(3))
def test_messages_in_any_order_and_any_number_leave_every_frame_once_after_a_repair(topic: Topic, seed: int) -> None:
    from confluent_kafka import Producer

    from pipelines.contracts.shipment import cut

    worker = Worker(topic.folder)
    labels(worker, 40)
    topic.carry()  # makes the topic
    data = worker.path.read_bytes()[len(segments.MAGIC) :]
    kafka = topic.another()
    Shipper(topic.folder, topic.state, kafka)._open()
    messages = list(cut(KEY, data, 0, 300))
    assert len(messages) > 8
    rng = random.Random(seed)
    thrown = [rng.choice(messages) for _ in range(30)]
    producer = Producer(kafka.options)

    def send(chosen: list[Any]) -> None:
        for message in chosen:
            producer.produce(kafka.topic, message.value, message.wire_key(), headers=message.headers())
        producer.flush()

    reader = Reader(KafkaBus(kafka, portion=700))
    send(thrown)
    read = list(reader.all().get(KEY, []))
    assert read == list(range(len(read))), "no frame twice, none before its turn"
    assert reader.gaps == []
    send(messages)
    assert reader.all() == {KEY: list(range(40))}
    assert reader.positions[KEY].problem == ""


def test_a_topic_that_lost_messages_stands_still_and_is_healed_by_sending_again(topic: Topic) -> None:
    worker = Worker(topic.folder)
    labels(worker, 3)
    topic.carry()
    kafka, topic.kafka = topic.kafka, topic.another()
    labels(worker, 3)
    topic.carry()  # somewhere else: on this topic these three are lost
    topic.kafka = kafka
    labels(worker, 3)
    topic.carry()
    reader = Reader(topic.bus)
    assert reader.all() == {KEY: [0, 1, 2]}
    assert reader.positions[KEY].problem == "frames 3..5 have not arrived"
    assert streams.stands_still(reader.positions[KEY])
    topic.state.unlink()  # `python -m serving.shipper --again`
    topic.carry()
    assert reader.all() == {KEY: list(range(9))}
    assert reader.positions[KEY].problem == ""


def test_a_topic_made_anew_is_read_from_its_beginning(topic: Topic) -> None:
    from confluent_kafka.admin import AdminClient

    worker = Worker(topic.folder)
    labels(worker, 3)
    topic.carry()
    reader = Reader(topic.bus)
    planned = topic.bus.scan({}, {})
    reader.all()
    admin = AdminClient(topic.kafka.options)
    admin.delete_topics([topic.kafka.topic])[topic.kafka.topic].result()
    with pytest.raises((TerminalError, TransientError)):  # its offsets are gone
        KafkaBus(topic.kafka).reread(planned.ranges, {})
    topic.state.unlink()
    labels(worker, 1)
    topic.carry()
    reader.bus = KafkaBus(topic.kafka)
    assert reader.all() == {KEY: [0, 1, 2, 3]}
    again = KafkaBus(topic.kafka).reread(planned.ranges, {})
    assert [[frame.n for frame in part] for part in again] == [[0, 1, 2]], "found where it was sent again"


def test_a_frame_longer_than_kafkas_usual_message_arrives(topic: Topic) -> None:
    worker = Worker(topic.folder)
    worker.append(Label, model="m" * 3_000_000, request_id="long", value=1.0)
    labels(worker, 1)
    topic.carry()
    assert Reader(topic.bus).all() == {KEY: [0, 1]}


def test_foreign_messages_are_passed_over(topic: Topic) -> None:
    from confluent_kafka import Producer

    worker = Worker(topic.folder)
    labels(worker, 1)
    topic.carry()
    producer = Producer(topic.kafka.options)
    producer.produce(topic.kafka.topic, b"hello", b"gw0/0/1")
    producer.produce(topic.kafka.topic, b"hello")
    producer.flush()
    labels(worker, 1)
    topic.carry()
    assert Reader(topic.bus).all() == {KEY: [0, 1]}


def test_brokers_out_of_reach_are_a_passing_error_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.adapters.kafka_bus._WAIT_S", 0.5)
    monkeypatch.setattr("serving.shipper._WAIT_S", 0.5)
    nowhere = connection("127.0.0.1:1", "t")
    with pytest.raises(TransientError, match="SLIPWAY_KAFKA"):
        KafkaBus(nowhere).scan({}, {})
    labels(Worker(tmp_path / "bus"), 1)
    shipper = Shipper(tmp_path / "bus", tmp_path / "state", nowhere)
    with pytest.raises(TransientError, match="Is it up"):
        shipper.once()
    assert not shipper.positions


def test_how_long_a_topic_keeps_what_it_holds_is_asked_of_the_broker(kafka: Broker) -> None:
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    client = AdminClient({"bootstrap.servers": kafka.servers})
    for topic, kept in {"keeps-two-days": 2 * 86_400_000, "keeps-for-good": -1}.items():
        made = client.create_topics([NewTopic(topic, config={"retention.ms": str(kept)})])
        made[topic].result(30)
    while "keeps-for-good" not in client.list_topics(timeout=30).topics:
        time.sleep(0.05)  # the broker tells of a topic a moment after it has made it
    told = kafka_topics.retention_days(
        connection(kafka.servers, "t"), ["keeps-two-days", "keeps-for-good", "not-there"]
    )
    assert told == {"keeps-two-days": 2.0, "keeps-for-good": None}
