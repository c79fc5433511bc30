"""What `kill -9` of each process leaves of a stream, against a batch build of the producer's own file."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from benchmarks.stream_events import BROKEN, SEED, TOO_LATE, Event
from benchmarks.stream_process import Stream
from benchmarks.stream_producer import produced
from benchmarks.stream_project import DATASET, TOPIC, VIEW, make_topic, write_project
from pipelines.adapters import kafka_topics
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import readable_through
from pipelines.contracts.kafka import connection
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import datasets, features
from pipelines.wiring.stream_state import frontier_us
from tests.kafka_broker import Broker, broker
from tests.spark import LEAN
from tests.streamed_project import expected_online, latest, online

KINDS = ("driver", "jvm", "driver and jvm", "broker", "producer")
CATCH_UP_S = 1800


class Producing:
    """The producer as a process; started again where it was after a kill."""

    def __init__(self, servers: str, file: Path, events: int, rate: float) -> None:
        given = [servers, TOPIC, str(file), str(events), str(rate)]
        self._command = [sys.executable, "-m", "benchmarks.stream_producer", *given]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, start_new_session=True)

    def ended(self, within_s: float) -> bool:
        """Whether it has sent everything, or does within a time. Raises AssertionError when it failed."""
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        assert code == 0, f"the producer ended with {code}"
        return True

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def kills(events: int, rate: float, every_s: float, folder: Path | None = None) -> dict[str, Any]:
    """Run the stream under kills, then compare. Returns the counts, and whether each of three states is equal."""
    folder = folder or Path(tempfile.mkdtemp(prefix="slipway-stream-"))
    killed: Counter[str] = Counter()
    draw = random.Random(SEED)
    began = time.monotonic()
    with broker(folder / "kafka") as kafka:
        make_topic(kafka.servers)
        home, include, properties = folder / "home", write_project(folder), folder / "spark.properties"
        properties.write_text(LEAN)  # it is started again and again, and shall be up soon
        settings = Settings(home=home, include_dir=include, kafka=kafka.servers, spark_config=str(properties))
        with Stream(settings, folder / "stream.log") as stream:
            stream.wait()
            producer = Producing(kafka.servers, folder / "produced", events, rate)
            try:
                turns: list[str] = []
                while not producer.ended(every_s * draw.uniform(0.5, 1.5)):
                    turns = turns or draw.sample(KINDS, len(KINDS))
                    if draw.random() < 0.75:  # else it is hit wherever it is, still starting perhaps
                        stream.wait()
                    victim = turns.pop()
                    _kill(victim, stream, kafka, producer)
                    killed[victim] += 1
                    print(f"{sum(killed.values()):4} {victim:16} at {time.monotonic() - began:.0f} s", flush=True)
            finally:
                producer.kill()
            ends = _ends(kafka.servers)
            _catch_up(settings, stream, ends)
        dead = len(_dead_letters(kafka.servers))
    sent = produced(folder / "produced")
    expected = made_from_file(folder / "rebuilt", settings.include_dir, sent)
    ours, theirs = (_ordered(one) for one in (settings, expected))
    refused = DeltaLake(settings.lake).read(f"quarantine/{DATASET}")
    view = latest(expected, VIEW)
    return {
        "events": len(sent),
        "kinds": dict(Counter(one.kind for one in sent)),
        "rate": rate,
        "seconds": round(time.monotonic() - began),
        "killed": {kind: killed[kind] for kind in KINDS},
        "messages": sum(ends.values()),
        "rows": ours.num_rows,
        "refused": refused.num_rows,
        "reasons": _reasons(refused),
        "dead_letters": dead,
        "nothing_lost": ours.num_rows + refused.num_rows == sum(ends.values()) and dead == refused.num_rows,
        "dataset_equal": ours.equals(theirs.select(ours.column_names)),
        "view_rows": len(view),
        "view_equal": latest(settings, VIEW) == view,
        "online_values": sum(map(len, online(settings, VIEW).values())),
        "online_equal": online(settings, VIEW) == expected_online(expected, VIEW),
    }


def _kill(victim: str, stream: Stream, kafka: Broker, producer: Producing) -> None:
    """SIGKILL, and start again what does not run any more."""
    if victim == "broker":
        kafka.kill()
        kafka.start()
    elif victim == "producer":
        producer.kill()
        producer.start()
    else:
        if victim == "jvm":
            code = stream.kill_jvm()
            assert code > 0, f"the driver ended with {code}, though its JVM had been killed"
        elif victim == "driver":
            stream.kill_driver()
        else:
            stream.kill()
        stream.start()


def _ends(servers: str) -> dict[str, int]:
    """The offset behind the last message of each of the topic's partitions, by its name as a source."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench"})
    try:
        return {
            name: consumer.get_watermark_offsets(TopicPartition(TOPIC, partition), timeout=30)[1]
            for partition, name in kafka_topics.sources(connection(servers, TOPIC, ""), TOPIC).items()
        }
    finally:
        consumer.close()


def _catch_up(settings: Settings, stream: Stream, ends: dict[str, int]) -> None:
    """Return when the view says that it has all messages, and all its rows are readable."""
    lake = DeltaLake(settings.lake)
    version = load_view(settings.include_dir, VIEW).feast_name(settings.include_dir)
    view = features.table_of(version)
    deadline = time.time() + CATCH_UP_S
    stream.wait()
    while not lake.exists(view) or any((lake.applied(view, name) or 0) < end for name, end in ends.items()):
        assert time.time() < deadline, f"{settings.home}: not all messages were taken within {CATCH_UP_S} s"
        time.sleep(1)  # nothing tells when it is done
    while (readable_through(settings, version) or 0) < (lake.applied(view, features.BUILD) or 0):
        assert time.time() < deadline, f"{settings.home}: not all rows were readable within {CATCH_UP_S} s"
        time.sleep(0.1)  # their stamps come with the clock


def _dead_letters(servers: str) -> set[bytes]:
    """The keys of the dead letters: one that was sent twice counts once."""
    from confluent_kafka import Consumer, TopicPartition

    topic = f"{TOPIC}.dead"
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "bench", "auto.offset.reset": "earliest"})
    try:
        end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)[1]
        consumer.assign([TopicPartition(topic, 0, 0)])
        found: set[bytes] = set()
        reached = 0
        deadline = time.time() + 60
        while reached < end:
            assert time.time() < deadline, f"{topic}: {reached} of {end} messages within 60 s"
            for message in consumer.consume(500, timeout=1):
                assert message.error() is None, message.error()
                found.add(message.key() or b"")
                reached = (message.offset() or 0) + 1
        return found
    finally:
        consumer.close()


def _reasons(refused: pa.Table) -> dict[str, int]:
    """How often which kind of reason was given: the words that do not tell of one message."""
    words = ("not JSON", "not a JSON object", "is not a number", "below", "late by", "already published", "null")
    found: Counter[str] = Counter()
    for reason in refused.column("reason").to_pylist():
        found[next((one for one in words if one in reason), reason)] += 1
    return dict(found.most_common())


def _ordered(settings: Settings) -> pa.Table:
    return DeltaLake(settings.lake).read(datasets.table_of(DATASET)).sort_by([("n", "ascending")])


def made_from_file(home: Path, include: Path, sent: list[Event]) -> Settings:
    """Another home, whose dataset is made of what was sent by the rules as they are written, and one build."""
    rows = []
    for one in sent:
        if one.kind in (BROKEN, TOO_LATE):
            continue
        row = msgspec.json.decode(one.value)
        at = datetime.fromisoformat(row["at"])
        came = datetime.fromtimestamp(one.stamp_ms // 1000, UTC).replace(microsecond=one.stamp_ms % 1000 * 1000)
        known = max(at, came)
        rows.append({**row, "at": at, "known_at": known, "day": known.date()})
    stamp = pa.timestamp("us", "UTC")
    types = {"n": pa.int64(), "account": pa.string(), "at": stamp, "cents": pa.int64(), "known_at": stamp}
    table = pa.Table.from_pylist(rows, schema=pa.schema({**types, "day": pa.date32()}))
    settings = Settings(home=home, include_dir=include)
    newest = max(int(row["known_at"].timestamp()) * 1_000_000 + row["known_at"].microsecond for row in rows)
    lake = DeltaLake(settings.lake)
    lake.append(datasets.table_of(DATASET), table, ["day"], txn=(datasets.INGEST, newest))
    spec = load_view(include, VIEW)
    made = features.compute(settings, spec, Span(None, frontier_us(spec, newest)), created_us=0)
    lake.append(features.table_of(spec.feast_name(include)), made, ["day"])
    return settings
