"""The bus on a topic of a real Kafka: what is sent twice, overtakes, is lost, or is nothing of ours."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.adapters import kafka_topics
from pipelines.adapters.kafka_bus import KafkaBus
from pipelines.contracts import segments, streams
from pipelines.contracts.errors import TerminalError, TransientError
from pipelines.contracts.events import Label
from pipelines.contracts.kafka import connection
from pipelines.contracts.streams import StreamKey
from serving.shipper import Shipper
from tests.contract.bus_places import KEY, Reader, Topic, labels
from tests.kafka_broker import Broker
from tests.unit.collect.traffic import Worker


@pytest.fixture
def topic(kafka: Broker, tmp_path: Path) -> Iterator[Topic]:
    (tmp_path / "bus").mkdir()
    made = Topic(tmp_path / "bus", kafka.servers)
    yield made
    made.bus.close()


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
