"""The inference log on a topic: the wire between the shipper and the collector.

A message carries whole frames of one stream, byte for byte as they lie in its segment, or a note and no frames. Its
key, `<gateway>/<worker>/<epoch>`, keeps a stream in one partition, in its order. Headers, all text:

    slipway   version of this form
    after     the counter that the stream's reader expects before this message
    note      what the shipper saw behind it: `ended: ...`, or why the stream stands still (a message without frames)

Messages may come more than once and, after a shipper was killed, older ones behind newer ones. A reader takes a message
whose `after` it has reached, drops the frames it has had, and passes over a message that leaves a hole before it: the
shipper is still to send, or to send again, what belongs there. A hole inside a message is one of the log itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from pipelines.contracts import segments, streams
from pipelines.contracts.errors import ContractError
from pipelines.contracts.streams import ENDED, Position, StreamKey, Taken, finished

VERSION = b"1"
Headers = list[tuple[str, str | bytes | None]]


class Message(NamedTuple):
    """One message: whole frames behind counter `after` (`value`), or a note."""

    key: StreamKey
    after: int
    value: bytes
    note: str = ""

    def wire_key(self) -> bytes:
        """Its key on the topic."""
        return f"{self.key.gateway}/{self.key.worker}/{self.key.epoch}".encode()

    def headers(self) -> Headers:
        """Its headers."""
        made: Headers = [("slipway", VERSION), ("after", str(self.after).encode())]
        return [*made, ("note", self.note)] if self.note else made


def parse(key: bytes | None, value: bytes | None, headers: Headers | dict[str, str | bytes | None] | None) -> Message:
    """The message on the topic. Raises ContractError for one that no shipper of this version has sent."""
    pairs = headers.items() if isinstance(headers, dict) else headers or ()
    given = {name: text.encode() if isinstance(text, str) else text or b"" for name, text in pairs}
    try:
        gateway, worker, epoch = (key or b"").decode().rsplit("/", 2)
        stream = streams.key_of(gateway, worker, epoch)
        after = int(given["after"])
        note = given.get("note", b"").decode()
    except (KeyError, ValueError) as error:
        raise ContractError("message on the bus", got=f"key {key!r}", expected="one of a shipper") from error
    if stream is None:
        raise ContractError("message on the bus", got=f"key {key!r}", expected="<gateway>/<worker>/<epoch>")
    if given.get("slipway") != VERSION or not 0 <= after <= segments.MAX_COUNTER:
        raise ContractError("message on the bus", got=f"version {given.get('slipway')!r}", expected=VERSION.decode())
    return Message(stream, after, value or b"", note)


def cut(key: StreamKey, data: bytes, after: int, max_bytes: int) -> Iterator[Message]:
    """Whole frames that follow each other as messages of at most `max_bytes` (a longer frame goes alone)."""
    begin = at = 0
    expected = before = after
    while at < len(data):
        length, n, _ = segments.HEADER.unpack_from(data, at)
        end = at + segments.HEADER.size + length
        if end - begin > max_bytes and at > begin:
            yield Message(key, before, data[begin:at])
            begin, before = at, expected
        at, expected = end, max(expected, n + 1)
    if at > begin:
        yield Message(key, before, data[begin:at])


def frames(message: Message) -> Iterator[segments.Frame]:
    """The whole frames of a message."""
    return segments.parse(message.value)


def take(position: Position, message: Message) -> Taken:
    """Read one message at a stream's position."""
    replace = msgspec.structs.replace
    if message.after > position.next_n:
        problem = f"frames {position.next_n}..{message.after - 1} have not arrived"
        return Taken(replace(position, problem=problem), [], [])
    if message.note:
        is_behind = message.after < position.next_n and not message.note.startswith(ENDED)
        return Taken(position if is_behind else replace(position, problem=message.note), [], [])
    taken = streams.take(position, frames(message))
    # A repeated message says nothing new about a stream that was read to its end.
    problem = "" if taken.frames or not finished(position) else position.problem
    return taken._replace(position=replace(taken.position, problem=problem))
