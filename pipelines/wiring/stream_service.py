"""The process behind `slipway up stream`: every stream of the project, from its topic into the lake and online."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pipelines.adapters import kafka_topics, spark_session, spark_stream
from pipelines.contracts.errors import NotFoundError, TerminalError, TransientError
from pipelines.contracts.kafka import Connection, connection
from pipelines.contracts.properties import read_properties
from pipelines.datasets.messages import Message
from pipelines.settings import Settings
from pipelines.wiring.streams import HOW_TO, Applied, Feed, Letter, stream_of, streamed

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

RETRY_S = 1.0
LOOK_S = 1.0
"""Between two looks at the topic's ends."""
_log = logging.getLogger("slipway.stream")

OnBatch = Callable[[str, Applied], None]


def run(
    settings: Settings,
    stopping: Callable[[], bool],
    *,
    view: str = "",
    trigger_ms: int = 200,
    on_batch: OnBatch = lambda _dataset, _applied: None,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Feed the project's streams, or the one of a view, until `stopping()`; the batches in work are finished first.

    alive: called about once a second by each stream that runs.
    What may pass (brokers or a store out of reach) is waited out. Raises NotFoundError when nothing streams,
    TerminalError without brokers or Spark, and whatever else ends one of the streams.
    """
    chosen = _chosen(settings, view)
    if not settings.kafka:
        raise TerminalError("streams", got="no brokers", expected="SLIPWAY_KAFKA=host:port,...")
    session = spark_session.session(settings)
    ended: list[BaseException] = []

    def feed(dataset: str) -> None:
        try:
            while not (stopping() or ended):
                try:
                    _feed(settings, session, dataset, lambda: stopping() or bool(ended), trigger_ms, on_batch, alive)
                except TransientError as error:
                    _log.warning("%s: %s; trying again", dataset, error)
                    time.sleep(RETRY_S)  # brokers that restart take seconds
        except BaseException as error:  # noqa: BLE001 - a thread's end must end the process: raised below
            ended.append(error)

    threads = [threading.Thread(target=feed, args=(dataset,), name=dataset) for dataset in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if ended:
        raise ended[0]


def _chosen(settings: Settings, view: str) -> list[str]:
    found = streamed(settings)
    chosen = [name for name, views in found.items() if not view or view in {one.name for one in views}]
    if not chosen:
        names = sorted(one.name for views in found.values() for one in views)
        what = f"a stream of view {view}" if view else "streams"
        raise NotFoundError(what, expected=f"one of {names}" if names else "`stream` in a view's spec", hint=HOW_TO)
    return chosen


def _feed(
    settings: Settings,
    session: SparkSession,
    dataset: str,
    stopping: Callable[[], bool],
    trigger_ms: int,
    on_batch: OnBatch,
    alive: Callable[[], None],
) -> None:
    stream = stream_of(streamed(settings)[dataset])
    brokers = connection(settings.kafka, stream.topic, settings.kafka_config)
    kafka_topics.ensure(brokers, [stream.topic, stream.dead_topic])
    sources = kafka_topics.sources(brokers, stream.topic)
    letters = kafka_topics.DeadLetters(brokers, stream.dead_topic)

    def source(partition: int) -> str:
        if partition not in sources:  # the topic has got more of them
            sources.update(kafka_topics.sources(brokers, stream.topic))
        return sources[partition]

    ends = kafka_topics.Ends(brokers, stream.topic)
    clock = settings.event_clock()

    with Feed(settings, dataset, lambda refused: letters.send([_sent(one) for one in refused])) as feed:

        def take(messages: Sequence[Message]) -> None:
            on_batch(dataset, feed.apply(messages))

        looked_s = 0.0

        def look() -> None:
            nonlocal looked_s
            feed.write_due()
            if time.monotonic() < looked_s + LOOK_S:
                return
            looked_s = time.monotonic()
            alive()
            if settings.clock == "replay":  # what its time will bring may not have been sent yet
                return
            now_us = clock.event_now_us()
            told = ends.now(sources)
            if told is not None and all(feed.applied(source(partition)) >= end for partition, end in told.items()):
                feed.caught_up(now_us)

        spark_stream.run(
            session,
            _spark_options(settings, brokers),
            stream.topic,
            {partition: feed.applied(name) for partition, name in sources.items()},
            source,
            settings.root / "stream" / dataset / "checkpoint",
            trigger_ms,
            take,
            stopping,
            look,
        )


def _sent(letter: Letter) -> tuple[bytes | None, dict[str, object]]:
    message = letter.message
    return letter.value, {"source": message.source, "offset": message.offset, "reason": letter.reason}


def _spark_options(settings: Settings, brokers: Connection) -> dict[str, str]:
    """Java's client has names of its own for TLS and SASL: lines `kafka.<name>=<value>` of `spark_config`."""
    options = {"kafka.bootstrap.servers": str(brokers.options["bootstrap.servers"])}
    if settings.spark_config:
        given = read_properties(settings.spark_config, "SLIPWAY_SPARK_CONFIG")
        options |= {name: value for name, value in given.items() if name.startswith("kafka.")}
    return options
