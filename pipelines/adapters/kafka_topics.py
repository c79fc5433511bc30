"""Topics of streams: made when they are missing, named with their ids; and the dead letters that go to one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.contracts.errors import TransientError
from pipelines.contracts.kafka import Connection

if TYPE_CHECKING:
    from confluent_kafka import Message, Producer

_WAIT_S = 10.0
_SOON_S = 2.0


def ensure(connection: Connection, topics: Sequence[str]) -> None:
    """Make the topics that are not there, as the brokers make topics. Raises TransientError."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.cimpl import NewTopic

    try:
        client = AdminClient(connection.options)
        there = client.list_topics(timeout=_WAIT_S).topics
        if missing := [NewTopic(topic) for topic in topics if topic not in there]:
            for made in client.create_topics(missing, request_timeout=_WAIT_S).values():
                made.result(2 * _WAIT_S)
    except KafkaException as error:
        raise _unreachable(topics, error) from error


def sources(connection: Connection, topic: str) -> dict[int, str]:
    """The name of each partition, with the topic's id: one made again under the old name has other messages."""
    from confluent_kafka import KafkaException, TopicCollection
    from confluent_kafka.admin import AdminClient

    try:
        client = AdminClient(connection.options)  # kept by its name: with the client its answers would go
        described = client.describe_topics(TopicCollection([topic]), request_timeout=_WAIT_S)[topic].result(2 * _WAIT_S)
    except KafkaException as error:
        raise _unreachable([topic], error) from error
    return {one.id: f"{topic}@{described.topic_id}/{one.id}" for one in described.partitions}


def retention_days(connection: Connection, topics: Sequence[str]) -> dict[str, float | None]:
    """How long each topic that exists keeps messages, in days; None for good. Raises TransientError."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.admin._config import ConfigResource

    try:
        client = AdminClient(connection.options)
        there = client.list_topics(timeout=_WAIT_S).topics
        wanted = [ConfigResource(ConfigResource.Type.TOPIC, topic) for topic in topics if topic in there]
        told = client.describe_configs(wanted, request_timeout=_WAIT_S) if wanted else {}
        kept = {one.name: int(found.result(2 * _WAIT_S)["retention.ms"].value) for one, found in told.items()}
    except KafkaException as error:
        raise _unreachable(topics, error) from error
    return {topic: None if ms < 0 else ms / 86_400_000 for topic, ms in kept.items()}


class Ends:
    """Where a topic ends."""

    def __init__(self, connection: Connection, topic: str) -> None:
        from confluent_kafka.admin import AdminClient

        self._topic = topic
        self._client: AdminClient = AdminClient(connection.options)

    def now(self, partitions: Iterable[int]) -> dict[int, int] | None:
        """The offset behind the last message by partition; None when the brokers do not tell at once."""
        from confluent_kafka import KafkaException, TopicPartition
        from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # documented, not in its list

        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # has no types
        asked = {TopicPartition(self._topic, partition): latest for partition in partitions}
        try:
            told = self._client.list_offsets(asked, request_timeout=_SOON_S)
            return {at.partition: answer.result(2 * _SOON_S).offset for at, answer in told.items()}
        except (KafkaException, TimeoutError):
            return None


class DeadLetters:
    """Sends refused messages to a topic, all or TransientError. After a crash one may be sent again: its key tells.

    The value is the message as it came; headers `source`, `offset` and `reason` say where it lay and what is wrong.
    """

    def __init__(self, connection: Connection, topic: str) -> None:
        from confluent_kafka import Producer

        self._topic = topic
        self._producer: Producer = Producer({**connection.options, "enable.idempotence": True, "acks": "all"})

    def send(self, letters: Sequence[tuple[bytes | None, Mapping[str, object]]]) -> None:
        """(value, headers) of each; the headers' `source` and `offset` make the key."""
        failed: list[str] = []

        def told(error: object, _message: Message) -> None:
            if error is not None:
                failed.append(str(error))

        for value, headers in letters:
            key = json.dumps([headers["source"], headers["offset"]]).encode()
            texts = [(name, str(text).encode()) for name, text in headers.items()]
            self._produce(value, key, texts, told)
        left = self._producer.flush(2 * _WAIT_S)
        if failed or left:
            got = failed[0] if failed else f"{left} of {len(letters)} not acknowledged"
            raise TransientError(f"dead letters to topic {self._topic}", got=got)

    def _produce(
        self, value: bytes | None, key: bytes, headers: list[tuple[str, bytes]], told: Callable[..., None]
    ) -> None:
        try:
            self._producer.produce(self._topic, value, key, headers=list(headers), on_delivery=told)
        except BufferError:
            self._producer.flush(_WAIT_S)
            self._producer.produce(self._topic, value, key, headers=list(headers), on_delivery=told)


def _unreachable(topics: Sequence[str], error: Exception) -> TransientError:
    return TransientError(f"topics {', '.join(topics)}", got=str(error), hint="Are the brokers of SLIPWAY_KAFKA up?")
