"""A stream through a real broker and real Spark, with the process killed on the way: the views are those of a build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import readable_through
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from tests import streamed_project
from tests.kafka_broker import Broker, broker
from tests.spark import lean_config
from tests.stream_process import Stream
from tests.streamed_project import expected_online, latest, online, rebuilt
from tests.waiting import wait_until

VIEW, DATASET = "carrier_punctuality", "flights_landed"
BROKEN = b'{"flight_id": "twelve"}'


def dead_letters(of: Broker, count: int) -> list[tuple[bytes, dict[str, bytes]]]:
    from confluent_kafka import Consumer

    consumer = Consumer({"bootstrap.servers": of.servers, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe([f"{DATASET}.dead"])
    found: list[tuple[bytes, dict[str, bytes]]] = []

    def read() -> bool:
        found.extend((m.value(), dict(m.headers())) for m in consumer.consume(50, timeout=1) if m.error() is None)
        return len(found) >= count

    try:
        wait_until(read, "dead letters")
    finally:
        consumer.close()
    return found


@pytest.mark.slow
def test_a_stream_that_is_killed_has_the_state_of_a_build(tmp_path: Path) -> None:
    properties = lean_config(tmp_path)
    include = streamed_project.write(tmp_path, {VIEW: (DATASET, True)})
    messages = streamed_project.messages(include, DATASET)[:120]
    broken = [messages[60]._replace(value=BROKEN)]
    with broker(tmp_path / "kafka") as kafka:
        settings = Settings(
            home=tmp_path / "home", include_dir=include, clock="wall", kafka=kafka.servers, spark_config=properties
        )
        version = load_view(include, VIEW).feast_name(include)
        began_us = settings.event_clock().event_now_us()
        lake = DeltaLake(settings.lake)

        def taken() -> int:
            assert stream.running(), stream.log.read_text()[-3000:]
            table = f"datasets/{DATASET}"
            return lake.read(table, ["flight_id"]).num_rows if lake.exists(table) else 0

        def produce(sent: Sequence[Message]) -> None:
            kafka.produce(DATASET, [(one.value, one.time_us) for one in sent])

        kafka.make_topic(DATASET, 2)
        produce(messages[:60])
        stream = Stream(settings, tmp_path / "stream.log", VIEW)
        try:
            wait_until(lambda: taken() > 0, "the first rows", 120)
            stream.kill()  # wherever it is now
            produce(broken + messages[60:])
            kafka.kill()
            stream = Stream(settings, tmp_path / "stream.log", VIEW)
            kafka.start()
            wait_until(lambda: taken() >= len(messages), "all rows", 150)
            wait_until(lambda: lake.exists(f"quarantine/{DATASET}"), "the broken one")
            wait_until(lambda: latest(settings, VIEW) == rebuilt(settings, VIEW), "the view's last rows", 30)
            # The newest row is years old; but all is taken, and so the view is fresh.
            wait_until(lambda: (readable_through(settings, version) or 0) > began_us, "the view is fresh", 30)
            assert stream.end() == 0, stream.log.read_text()[-3000:]
        finally:
            if stream.running():
                stream.kill()
        [(value, headers)] = dead_letters(kafka, 1)
    assert value == BROKEN
    assert b"flight_id: 'twelve' is not a number" in headers["reason"]
    ids = sorted(lake.read(f"datasets/{DATASET}", ["flight_id"]).column("flight_id").to_pylist())
    assert ids == sorted(json.loads(message.value)["flight_id"] for message in messages)
    assert latest(settings, VIEW) == rebuilt(settings, VIEW)
    assert online(settings, VIEW) == expected_online(settings, VIEW)
    assert lake.read(f"quarantine/{DATASET}").num_rows == 1
