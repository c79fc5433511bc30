"""The members of Feast's `Value` that are no plain number or text: lists, sets, maps, structs, and rarer scalars.

They reach request features and logs; no model takes one as a column. The numbers are the fields of `feast.types.Value`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from pipelines.contracts.errors import ContractError
from serving.online_features.feast_values import Scalar, Value, decode, seconds, signed, text, varint

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DOUBLE, _FLOAT = struct.Struct("<d"), struct.Struct("<f")


def decode_rare(data: bytes) -> Value:
    """As `feast_values.decode`, for the fields it does not know. Raises ContractError, IndexError or ValueError."""
    value: Value = None
    for field, content in _fields(data):
        if field == _NULL:
            value = None
        elif field in _MEMBERS and isinstance(content, bytes):
            value = _MEMBERS[field](content)
        else:
            raise ContractError("online feature value", got=f"field {field}", expected="one of feast.types.Value")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message: varints as unsigned integers, all else as bytes. Raises IndexError or ValueError."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            number, at = varint(data, at)
            yield tag >> 3, number
            continue
        if wire == _LENGTH:
            length, at = varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("it is torn")
        yield tag >> 3, data[at : at + length]
        at += length


def _packed(one: Callable[[int], Scalar]) -> Callable[[bytes], Value]:
    """A list of varints, which a writer may pack or not."""

    def decoded(data: bytes) -> Value:
        found: list[Value] = []
        for _, content in _fields(data):
            if isinstance(content, int):
                found.append(one(content))
                continue
            at = 0
            while at < len(content):
                number, at = varint(content, at)
                found.append(one(number))
        return found

    return decoded


def _floats(layout: struct.Struct) -> Callable[[bytes], Value]:
    def decoded(data: bytes) -> Value:
        try:
            return [number for _, content in _fields(data) for (number,) in layout.iter_unpack(_bytes(content))]
        except struct.error as error:
            raise ValueError(str(error)) from error

    return decoded


def _each(one: Callable[[bytes], Value]) -> Callable[[bytes], Value]:
    """A list of messages, texts or byte strings."""
    return lambda data: [one(_bytes(content)) for _, content in _fields(data)]


def _map(data: bytes) -> Value:
    made: dict[Scalar, Value] = {}
    for _, entry in _fields(data):
        key, value = "", b""
        for field, content in _fields(_bytes(entry)):
            if field == 1:
                key = _bytes(content).decode()
            else:
                value = _bytes(content)
        made[key] = decode(value)
    return made


def _scalar_map(data: bytes) -> Value:
    made: dict[Scalar, Value] = {}
    for _, entry in _fields(data):
        key: Scalar = None
        value = b""
        for field, content in _fields(_bytes(entry)):
            if field == 1:
                key = _map_key(_bytes(content))
            else:
                value = _bytes(content)
        made[key] = decode(value)
    return made


def _map_key(data: bytes) -> Scalar:
    key: Scalar = None
    for field, content in _fields(data):
        if isinstance(content, int):
            key = bool(content) if field == 5 else seconds(content) if field == 6 else signed(content)
        elif field in (3, 4):
            key = float((_FLOAT if field == 3 else _DOUBLE).unpack(content)[0])
        else:
            key = text(content)
    return key


def _zoned(data: bytes) -> Value:
    """A timestamp with the name of a zone: the moment is what counts."""
    numbers = [content for field, content in _fields(data) if field == 1 and isinstance(content, int)]
    return seconds(numbers[-1] if numbers else 0)


def _bytes(content: int | bytes) -> bytes:
    if isinstance(content, int):
        raise ValueError("a number where there should be bytes")
    return content


_NULL = 19
_text, _texts = text, _each(text)
_integers, _flags, _timestamps = _packed(signed), _packed(bool), _packed(seconds)
_doubles, _singles, _values, _maps = _floats(_DOUBLE), _floats(_FLOAT), _each(decode), _each(_map)

_MEMBERS: dict[int, Callable[[bytes], Value]] = {
    **dict.fromkeys((1, 2, 32, 36, 37, 44), _text),
    **dict.fromkeys((11, 12, 22, 23, 33, 38, 39, 40, 41, 45, 46), _texts),
    **dict.fromkeys((13, 14, 24, 25), _integers),
    **dict.fromkeys((15, 26), _doubles),
    **dict.fromkeys((16, 27), _singles),
    **dict.fromkeys((17, 28), _flags),
    **dict.fromkeys((18, 29), _timestamps),
    **dict.fromkeys((20, 34), _map),
    **dict.fromkeys((21, 35), _maps),
    **dict.fromkeys((42, 43), _values),
    47: _scalar_map,
    48: _zoned,
}
