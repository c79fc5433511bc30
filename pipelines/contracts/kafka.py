"""How an installation reaches its Kafka: what shipper and collector give to librdkafka."""

from __future__ import annotations

from typing import NamedTuple

from pipelines.contracts.properties import read_properties

MAX_MESSAGE = 80 << 20
"""The longest message: one frame of the greatest length, and room for its headers."""


class Connection(NamedTuple):
    """Brokers with everything librdkafka needs to talk to them, and the topic of the inference log."""

    options: dict[str, str | int | float | bool]
    topic: str


def connection(servers: str, topic: str, config: str = "") -> Connection:
    """A connection to `servers` (host:port, comma-separated).

    `config` names a file of librdkafka's properties, a `name=value` a line: TLS, SASL and its secrets. Raises
    TerminalError when it cannot be read or a line is none.
    """
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": servers, "message.max.bytes": MAX_MESSAGE}
    options |= {"receive.message.max.bytes": 2 * MAX_MESSAGE}
    if config:
        options.update(read_properties(config, "SLIPWAY_KAFKA_CONFIG"))
    return Connection(options, topic)
