"""The bus as a Kafka topic, read by offsets that the control database keeps (no consumer group is committed to).

Partitions are read in portions, each in the order of its offsets and one after the other, so that a planned portion
reads the same when it is read again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pipelines.contracts import shipment
from pipelines.contracts.errors import ContractError, TerminalError, TransientError
from pipelines.contracts.kafka import Connection
from pipelines.contracts.segments import Frame
from pipelines.contracts.streams import Position, Present, Range, Scan, StreamKey

if TYPE_CHECKING:
    from confluent_kafka import Consumer

PORTION = 32 << 20
"""Bytes of messages taken in one scan, about."""
_WAIT_S = 10.0
_CONSUME = 500

_log = logging.getLogger("slipway.collector")


class _Place(NamedTuple):
    """A message and where it lies."""

    partition: int
    offset: int
    message: shipment.Message


class KafkaBus:
    """Reads one topic. Raises TransientError while the brokers are out of reach; a topic that is missing is empty."""

    def __init__(self, connection: Connection, *, portion: int = PORTION) -> None:
        self._connection = connection
        self._topic = connection.topic
        self._portion = portion
        self._consumer: Consumer | None = None
        self._topic_id = ""
        self._at: dict[int, int] = {}

    def scan(self, positions: Mapping[StreamKey, Position], offsets: Mapping[str, int]) -> Scan:
        """What is new behind `offsets`; `positions` say which of it has been read before."""
        with _brokers():
            begin = {}
            end = {}
            for partition, (low, high) in self._watermarks().items():
                begin[partition] = self._begin(partition, offsets.get(self._source(partition)), low, high)
                end[partition] = high
            return self._fold(self._read(begin, end, self._portion), begin, positions)

    def reread(self, ranges: Sequence[Range], next_ns: Mapping[StreamKey, int]) -> list[list[Frame]]:
        """The frames of planned ranges, also where they lie elsewhere now, because they were sent again.

        Raises TerminalError when some have left the topic.
        """
        with _brokers():
            marks = {self._source(partition): (partition, *mark) for partition, mark in self._watermarks().items()}
            found = self._reread_in_place(ranges, next_ns, marks)
            if _counts(found) != [one.frames for one in ranges]:
                found = self._find_again(ranges, marks)
        if _counts(found) == [one.frames for one in ranges]:
            return found
        raise TerminalError(
            f"planned batch of {self._topic}",
            got=f"{sum(_counts(found))} of its frames, the others are gone",
            expected=sum(one.frames for one in ranges),
            hint="Send them again: docs/runbooks/on-call/log-not-whole.md.",
        )

    def _reread_in_place(
        self, ranges: Sequence[Range], next_ns: Mapping[StreamKey, int], marks: Mapping[str, tuple[int, int, int]]
    ) -> list[list[Frame]]:
        begin: dict[int, int] = {}
        end: dict[int, int] = {}
        for one in ranges:
            partition, low, high = marks.get(one.source, (-1, 0, 0))
            if not low <= one.start <= one.end <= high:
                return []
            begin[partition] = min(begin.get(partition, one.start), one.start)
            end[partition] = max(end.get(partition, one.end), one.end)
        known = {key: Position(key=key, next_n=n) for key, n in next_ns.items()}
        places = [place for place in self._read(begin, end) if place.offset < end[place.partition]]
        scanned = self._fold(places, begin, known)
        frames = {(one.key, one.source): part for one, part in zip(scanned.ranges, scanned.frames, strict=True)}
        return [frames.get((one.key, one.source), []) for one in ranges]

    def _find_again(self, ranges: Sequence[Range], marks: Mapping[str, tuple[int, int, int]]) -> list[list[Frame]]:
        """The planned frames by their counters, wherever on the topic they are."""
        there: dict[StreamKey, dict[int, Frame]] = {one.key: {} for one in ranges}
        begin = {partition: low for partition, low, _ in marks.values()}
        end = {partition: high for partition, _, high in marks.values()}
        for _, _, message in self._read(begin, end):
            if message.key in there:
                there[message.key].update((frame.n, frame) for frame in shipment.frames(message))
        return [
            [frame for n, frame in sorted(there[one.key].items()) if n >= one.first_n][: one.frames] for one in ranges
        ]

    def survey(self) -> dict[StreamKey, Present]:
        """Every stream that the topic still holds."""
        found: dict[StreamKey, Present] = {}
        with _brokers():
            marks = self._watermarks()
            begin = {partition: low for partition, (low, _) in marks.items()}
            for partition, _, message in self._read(begin, {p: high for p, (_, high) in marks.items()}):
                present = found.get(message.key)
                # Where the beginning of a partition has been deleted, so may be the beginnings of its streams.
                since = message.after if begin[partition] else 0
                if present is None:
                    present = found[message.key] = Present(since=since)
                present.since = min(present.since, since)
                present.counters += [frame.n for frame in shipment.frames(message)]
                if message.note:
                    present.written = max(present.written or 0, message.after)
        return found

    def close(self) -> None:
        """Leave the brokers."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _source(self, partition: int) -> str:
        # With the topic's id: a topic deleted and made again has the name of the old one, and other messages.
        return f"{self._topic}@{self._topic_id}/{partition}"

    def _begin(self, partition: int, stored: int | None, low: int, high: int) -> int:
        """The offset to read from. What was deleted unread cannot be read; its streams then stand still and say so."""
        if stored is None:
            if low:
                _log.warning("%s begins at offset %d: what lay before was not read", self._source(partition), low)
            return low
        if low <= stored <= high:
            return stored
        what = "was deleted before it was read" if stored < low else "has been lost by the brokers"
        _log.error("%s: offset %d %s; reading on from %d", self._source(partition), stored, what, low)
        return low

    def _watermarks(self) -> dict[int, tuple[int, int]]:
        """First offset and the one behind the last, by partition."""
        from confluent_kafka import TopicPartition

        consumer = self._open()
        topic = consumer.list_topics(self._topic, timeout=_WAIT_S).topics[self._topic]
        if not topic.partitions:
            return {}
        self._topic_id = self._topic_id or _topic_id(self._connection)
        marks: dict[int, tuple[int, int]] = {}
        for partition in sorted(topic.partitions):
            found = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=_WAIT_S)
            if found is None:
                raise TransientError(f"offsets of {self._source(partition)}", got="no answer")
            marks[partition] = found
        return marks

    def _read(self, begin: Mapping[int, int], end: Mapping[int, int], portion: int | None = None) -> list[_Place]:
        """Messages from `begin` to `end` and perhaps some behind it, or about `portion` bytes; by partition and offset.

        What came meanwhile is kept: the consumer will not give it a second time.
        """
        consumer = self._open()
        self._seek(begin)
        found: list[_Place] = []
        taken = 0
        answered = time.monotonic()
        while left := sum(max(0, end[partition] - self._at[partition]) for partition in begin):
            # Not more than there are: it would wait for them.
            messages = consumer.consume(min(left, _CONSUME), timeout=0.2)
            if messages:
                answered = time.monotonic()
            elif time.monotonic() - answered > _WAIT_S:
                raise TransientError(f"topic {self._topic}", got=f"nothing for {_WAIT_S:.0f} s", expected="messages")
            for message in messages:
                if (error := message.error()) is not None:
                    raise TransientError(f"topic {self._topic}", got=error.str())
                partition, offset = int(message.partition() or 0), int(message.offset() or 0)
                if partition not in begin or offset < self._at[partition]:
                    continue  # fetched before the last seek
                self._at[partition] = offset + 1
                value = message.value() or b""
                taken += len(value)
                try:
                    parsed = shipment.parse(message.key(), value, message.headers())
                except ContractError as error:
                    _log.error("%s at offset %d is passed over: %s", self._source(partition), offset, error)
                    continue
                found.append(_Place(partition, offset, parsed))
            if portion is not None and taken >= portion:
                break
        found.sort(key=lambda place: place[:2])
        return found

    def _seek(self, begin: Mapping[int, int]) -> None:
        """Be at `begin`: mostly so already, because one portion follows the other."""
        from confluent_kafka import TopicPartition

        if self._at == begin:
            return
        self._open().assign([TopicPartition(self._topic, partition, offset) for partition, offset in begin.items()])
        self._at = dict(begin)

    def _fold(
        self, places: Sequence[_Place], begin: Mapping[int, int], positions: Mapping[StreamKey, Position]
    ) -> Scan:
        found = Scan()
        parts: dict[tuple[StreamKey, str], int] = {}
        for partition, offset, message in places:
            key, source = message.key, self._source(partition)
            before = found.positions.get(key) or positions.get(key) or Position(key=key)
            taken = shipment.take(before, message)
            found.positions[key] = taken.position
            found.gaps += taken.gaps
            if not taken.frames:
                continue
            index = parts.setdefault((key, source), len(found.ranges))
            if index == len(found.ranges):
                found.ranges.append(_range(key, source, offset, taken.frames[0].n))
                found.frames.append([])
            found.frames[index] += taken.frames
            grown = len(found.frames[index])
            found.ranges[index] = msgspec.structs.replace(found.ranges[index], end=offset + 1, frames=grown)
        found.offsets = {self._source(partition): self._at[partition] for partition in begin}
        return found

    def _open(self) -> Consumer:
        if self._consumer is None:
            from confluent_kafka import Consumer

            self._consumer = Consumer(
                self._connection.options
                | {
                    "group.id": "slipway-collector",  # librdkafka asks for a name; nothing is committed under it
                    "enable.auto.commit": False,
                    "enable.auto.offset.store": False,
                    "auto.offset.reset": "error",
                    "fetch.wait.max.ms": 50,
                }
            )
        return self._consumer


def _topic_id(connection: Connection) -> str:
    from confluent_kafka import TopicCollection
    from confluent_kafka.admin import AdminClient

    client = AdminClient(connection.options)  # kept by its name: with the client its answers would go
    asked = client.describe_topics(TopicCollection([connection.topic]), request_timeout=_WAIT_S)
    return str(asked[connection.topic].result(2 * _WAIT_S).topic_id)


def _range(key: StreamKey, source: str, start: int, first_n: int) -> Range:
    gateway, worker, epoch = key
    return Range(
        gateway=gateway, worker=worker, epoch=epoch, source=source, start=start, end=start, first_n=first_n, frames=0
    )


def _counts(parts: Sequence[Sequence[Frame]]) -> list[int]:
    return [len(part) for part in parts]


@contextmanager
def _brokers() -> Iterator[None]:
    from confluent_kafka import KafkaException

    try:
        yield
    except KafkaException as error:
        raise TransientError("Kafka", got=error.args[0].str(), hint="Is the broker of SLIPWAY_KAFKA up?") from error
    except TimeoutError as error:
        raise TransientError("Kafka", got="no answer", hint="Is the broker of SLIPWAY_KAFKA up?") from error
