"""How an installation reaches its Kafka: what shipper and collector give to librdkafka."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipelines.contracts.errors import TerminalError

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
        options.update(_properties(Path(config)))
    return Connection(options, topic)


def _properties(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise TerminalError("SLIPWAY_KAFKA_CONFIG", got=str(error), expected="a file of name=value lines") from error
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            # The line itself may hold a secret.
            raise TerminalError(f"{file}:{number}", got="no '='", expected="name=value")
        found[name.strip()] = value.strip()
    return found
