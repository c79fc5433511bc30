"""The shipper: sends the segments beside a gateway to Kafka, each frame at least once and in its stream's order.

`python -m serving.shipper` runs beside the gateway and needs nothing of it but its folder, so either may be killed at
any moment. What the brokers have acknowledged is written down (`shipper/positions.json`); a restart goes on behind it,
and what it sends again the collector drops by counter. `--again` forgets the positions: everything that is still on the
disk is sent once more, which heals a topic that has lost something.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from pipelines.contracts import durable_files, segment_retention, segments, shipment
from pipelines.contracts.errors import SlipwayError, TerminalError, TransientError
from pipelines.contracts.kafka import MAX_MESSAGE, Connection, connection
from pipelines.contracts.segment_folder import QUIET_S, folder_of, scan
from pipelines.contracts.service_process import begin_service
from pipelines.contracts.streams import Position, Range, StreamKey
from pipelines.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

PARTITIONS = 8
PORTION = 8 << 20
"""Bytes sent before the brokers' acknowledgement is awaited, about."""
MESSAGE = 256 << 10
"""Bytes of frames in one message, unless a single frame is longer."""
_TIMEOUT_S = 30.0
_WAIT_S = 10.0
_MANY = 10_000
_DAY_S = 86_400.0
_REMOVE_EVERY_S = 600.0

_log = logging.getLogger("slipway.shipper")
_positions = msgspec.json.Decoder(list[Position])


class Shipper:
    """Sends what is new in a folder of segments. Raises TransientError while the brokers do not take it."""

    def __init__(self, bus: Path, state: Path, kafka: Connection, *, quiet_s: float = QUIET_S) -> None:
        self._bus = bus
        self._state = state
        self._kafka = kafka
        self._quiet_s = quiet_s
        self._producer: Producer | None = None
        self._failure: KafkaError | None = None
        # Those of streams that have left the disk are of no more use.
        self.positions = {at.key: at for at in _read(state) if folder_of(bus, at.key).exists()}

    def once(self) -> int:
        """Send one portion of what is new and wait until the brokers have it; returns its frames."""
        found = scan(self._bus, self.positions, max_bytes=PORTION, quiet_s=self._quiet_s)
        moved = {key: at for key, at in found.positions.items() if self.positions.get(key) != at}
        if not moved:
            return 0
        next_ns = {key: self.positions[key].next_n if key in self.positions else 0 for key in moved}
        for part, frames in zip(found.ranges, found.frames, strict=True):
            for message in shipment.cut(part.key, self._bytes_of(part), next_ns[part.key], MESSAGE):
                self._send(message)
            next_ns[part.key] = frames[-1].n + 1 if frames else next_ns[part.key]
        for key, at in moved.items():
            if at.problem and (key not in self.positions or self.positions[key].problem != at.problem):
                _log.info("stream %s: %s", key, at.problem)
                self._send(shipment.Message(key, at.next_n, b"", at.problem))
        self._await_acknowledgements()
        self.positions = self.positions | moved
        _write(self._state, self.positions)
        return found.count

    def remove_old_segments(self, keep_days: float) -> int:
        """Remove segments that the brokers have had for so long; returns how many."""
        try:
            return segment_retention.remove_read(self._bus, self.positions, time.time() - keep_days * _DAY_S)
        except OSError as error:  # the log matters more than the room: the next pass tries again
            _log.error("old segments stay: %s", error)
            return 0

    def close(self) -> None:
        """Let go of the brokers; what they have not acknowledged is sent again by the next shipper."""
        self._producer = None

    def _bytes_of(self, part: Range) -> bytes:
        with segments.segment_path(self._bus, *part.key, part.segment).open("rb") as handle:
            begin = max(part.start, len(segments.MAGIC))
            handle.seek(begin)
            return handle.read(part.end - begin)

    def _send(self, message: shipment.Message) -> None:
        producer = self._open()
        while True:
            try:
                producer.produce(
                    self._kafka.topic,
                    value=message.value,
                    key=message.wire_key(),
                    headers=message.headers(),
                    on_delivery=self._delivered,
                )
            except BufferError:  # its queue is full: give it time to send
                producer.poll(0.1)
            else:
                return

    def _delivered(self, error: KafkaError | None, _message: object) -> None:
        self._failure = self._failure or error

    def _await_acknowledgements(self) -> None:
        left = self._open().flush(_TIMEOUT_S)
        if not left and self._failure is None:
            return
        got = self._failure.str() if self._failure else f"no acknowledgement for {_TIMEOUT_S:.0f} s"
        # A new producer forgets what this one still wants to send, so that nothing overtakes what is sent again.
        self._open().purge()
        self._producer, self._failure = None, None
        raise TransientError("Kafka", got=got, expected="acknowledgements", hint="Is the broker of SLIPWAY_KAFKA up?")

    def _open(self) -> Producer:
        if self._producer is None:
            from confluent_kafka import KafkaException, Producer

            try:
                _make_topic(self._kafka)
                self._producer = Producer(
                    self._kafka.options
                    | {
                        "acks": "all",
                        "enable.idempotence": True,
                        "compression.type": "lz4",
                        "linger.ms": 5,
                        "delivery.timeout.ms": int(_TIMEOUT_S * 1000) - 5000,
                    }
                )
            except KafkaException as error:
                raise TransientError("Kafka", got=error.args[0].str(), hint="Is it up?") from error
        return self._producer


def _make_topic(kafka: Connection) -> None:
    """Make the topic unless it is there; the cluster's default says how often it is replicated."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    admin = AdminClient(kafka.options)
    if kafka.topic in admin.list_topics(timeout=_WAIT_S).topics:
        return
    # Whole streams are kept until they are old: compaction would drop all but the last message of each.
    config = {"max.message.bytes": str(MAX_MESSAGE), "cleanup.policy": "delete"}
    made = admin.create_topics([NewTopic(kafka.topic, PARTITIONS, -1, config=config)], request_timeout=_WAIT_S)
    try:
        made[kafka.topic].result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    _log.info("topic %s is made", kafka.topic)


def _read(state: Path) -> list[Position]:
    """What was written down; nothing when that cannot be read: then all is sent again."""
    try:
        return _positions.decode(state.read_bytes())
    except FileNotFoundError:
        return []
    except msgspec.MsgspecError as error:
        _log.error("%s cannot be read (%s): everything is sent again", state, error)
        return []


def _write(state: Path, positions: Mapping[StreamKey, Position]) -> None:
    durable_files.write(state, msgspec.json.encode(list(positions.values())))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one shipper sends from a folder: two would move each other's positions."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TerminalError(
                "shipper", got="a second one", expected="one a home", hint="`slipway status shipper` shows the first."
            ) from error
        yield


def run(settings: Settings, stopping: Callable[[], bool], *, poll_s: float = 0.1, again: bool = False) -> None:
    """Send until `stopping()`. Raises TerminalError without a broker to send to, or beside another shipper."""
    if not settings.kafka:
        raise TerminalError("shipper", got="no SLIPWAY_KAFKA", expected="bootstrap servers, host:port,...")
    kafka = connection(settings.kafka, settings.kafka_topic, settings.kafka_config)
    folder = settings.root / "shipper"
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    beat = settings.run_dir / "shipper.beat"  # touched after every pass: what `slipway status` looks at
    with _alone(folder):
        if again:
            (folder / "positions.json").unlink(missing_ok=True)
        shipper = Shipper(settings.bus, folder / "positions.json", kafka)
        told = ""
        removed_s = -_REMOVE_EVERY_S
        while not stopping():
            try:
                sent = shipper.once()
                if time.monotonic() - removed_s > _REMOVE_EVERY_S:
                    shipper.remove_old_segments(settings.log_retention_days)
                    removed_s = time.monotonic()
            except TransientError as error:
                if str(error) != told:
                    _log.warning("%s", error)
                told = str(error)
                time.sleep(1.0)  # the brokers are away: ask them once a second
                continue
            told = ""
            beat.touch()
            if sent < _MANY:
                time.sleep(poll_s)  # a folder tells nobody when it grows
        shipper.close()


def main(arguments: list[str]) -> int:
    """Send until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m serving.shipper", description="Sends the inference log to Kafka.")
    parser.add_argument("--again", action="store_true", help="send everything that is on the disk once more")
    options = parser.parse_args(arguments)
    stop = begin_service()
    try:
        run(Settings(), stop, again=options.again)
    except SlipwayError as error:
        sys.stderr.write(f"shipper: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
