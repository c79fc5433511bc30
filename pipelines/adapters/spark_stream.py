"""A topic's messages in micro-batches, by Spark Structured Streaming.

Spark writes down the offsets of a batch before it hands it out, and gives the same batch again until it is taken. What
has been taken is known to whoever takes it (offsets beside the rows), so Spark's checkpoint may be lost: then it begins
behind what is there.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.contracts.errors import TerminalError, TransientError
from pipelines.datasets.messages import Message

if TYPE_CHECKING:
    from pyarrow import Table
    from pyspark.sql import DataFrame, SparkSession

MOST = 50_000
"""Messages of one batch: after an outage what has gathered is taken in pieces."""
_POLL_S = 0.1
_log = logging.getLogger("slipway.stream")


def run(
    session: SparkSession,
    options: Mapping[str, str],
    topic: str,
    begin: Mapping[int, int],
    source: Callable[[int], str],
    checkpoint: Path,
    trigger_ms: int,
    take: Callable[[Sequence[Message]], object],
    stopping: Callable[[], bool],
    look: Callable[[], None],
) -> None:
    """Hand out the topic's messages until `stopping()`.

    options: Spark's options of its Kafka source. begin: the offset to begin at by partition, when there is no
    checkpoint. source: the name of a partition in `Message.source`. `look` is called about ten times a second while the
    query runs. Raises what `take` raises, TerminalError when Spark's JVM has died (a process has but one), and
    TransientError when the query ends otherwise.
    """
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    failed: list[BaseException] = []
    taking = threading.Lock()
    over = False

    def batch(rows: DataFrame, _number: int) -> None:
        messages = _messages(rows.toArrow(), source)
        with taking:
            try:
                if over:  # not taken, and Spark must not count it as taken
                    raise TransientError(f"stream of topic {topic}", got="has ended")
                if messages:
                    take(messages)
            except BaseException as error:  # told by its own type below: Spark would make a text of it
                failed.append(error)
                raise

    reader = session.readStream.format("kafka").options(**options).option("subscribe", topic)
    reader = reader.option("startingOffsets", json.dumps({topic: {str(p): o for p, o in begin.items()}}))
    reader = reader.option("maxOffsetsPerTrigger", MOST).option("kafka.isolation.level", "read_committed")
    incoming = reader.load().select("partition", "offset", "timestamp", "value")
    writer = incoming.writeStream.foreachBatch(batch).option("checkpointLocation", str(checkpoint))
    try:
        query = writer.trigger(processingTime=f"{trigger_ms} milliseconds").start()
        try:
            while not stopping():
                look()
                query.awaitTermination(_POLL_S)  # raises what ended it
        finally:
            query.stop()
    except (PySparkException, Py4JError, OSError) as error:
        if not _answers(session):
            hint = "Start the stream again: it goes on behind what is there."
            raise TerminalError(f"stream of topic {topic}", got="Spark's JVM has died", hint=hint) from error
        if failed:
            raise failed[0] from None
        raise TransientError(f"stream of topic {topic}", got=f"{type(error).__name__}: {error}"[:2000]) from error
    finally:
        with taking:  # a batch outlives the JVM that asked for it: nobody else may begin before it is done
            over = True


def _answers(session: SparkSession) -> bool:
    from py4j.protocol import Py4JError

    try:
        return bool(session.version)
    except (Py4JError, OSError):
        return False


def _messages(rows: Table, source: Callable[[int], str]) -> list[Message]:
    ordered = rows.sort_by([("partition", "ascending"), ("offset", "ascending")])
    columns: list[list[Any]] = [ordered.column(name).to_pylist() for name in ("partition", "offset", "value")]
    stamps = ordered.column("timestamp").cast(pa.int64()).to_pylist()
    names = {partition: source(partition) for partition in set(columns[0])}
    return [
        # A message without a value says nothing: it is refused like any other that is not JSON.
        Message(value or b"", stamp, names[partition], offset)
        for partition, offset, value, stamp in zip(*columns, stamps, strict=True)
    ]
