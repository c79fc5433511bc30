"""Feast's layout of an online row, without Feast: entity keys (serialisation version 3) and `Value` messages.

A contract test reads back with Feast's SDK what is written with these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.clocks import from_us

_STRING, _INT32, _INT64 = 2, 3, 4
_KEY_TYPES = {"string": _STRING, "int32": _INT32, "int64": _INT64}
_DOUBLE = struct.Struct("<Bd")
_FLOAT = struct.Struct("<Bf")
_FIXED = {"float64": (0x29, 8), "float32": (0x35, 4)}  # tag and width of what is stored as it lies in memory


def key_encoder(key_types: Mapping[str, str]) -> tuple[list[str], Callable[[Sequence[Any]], bytes]]:
    """The join keys in their sorted order, and a function from values in that order to the key's bytes."""
    names = sorted(key_types)
    kinds = [_KEY_TYPES[key_types[name]] for name in names]
    head = struct.pack("<I", len(names)) + b"".join(
        struct.pack("<II", _STRING, len(name.encode())) + name.encode() for name in names
    )

    def encode(values: Sequence[Any]) -> bytes:
        parts = [head]
        for kind, value in zip(kinds, values, strict=True):
            data = str(value).encode() if kind == _STRING else struct.pack("<i" if kind == _INT32 else "<q", value)
            parts += [struct.pack("<II", kind, len(data)), data]
        return b"".join(parts)

    return names, encode


def messages_of(kind: str, column: pa.ChunkedArray) -> list[bytes]:
    """The column of a feature type as the bytes of Feast's `Value`s: a whole column of numbers at once."""
    if kind in _FIXED and column.null_count == 0:
        tag, width = _FIXED[kind]
        made = np.empty((len(column), 1 + width), dtype=np.uint8)
        made[:, 0] = tag
        values = column.to_numpy().astype(f"<f{width}", copy=False)
        made[:, 1:] = np.ascontiguousarray(values).view(np.uint8).reshape(-1, width)
        whole: list[bytes] = made.view(f"V{1 + width}").ravel().tolist()
        return whole
    return _by_value(column, value_encoder(kind))


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """What Feast keeps as text beside the values of a column."""
    if pa.types.is_floating(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    return _by_value(column, text_of)


def _by_value(column: pa.ChunkedArray, encode: Callable[[Any], Any]) -> list[Any]:
    """`encode` of every value, called once for each different one."""
    coded = column.combine_chunks().dictionary_encode()
    made = [*(encode(value) for value in coded.dictionary.to_pylist()), encode(None)]
    return [made[index] for index in coded.indices.fill_null(len(made) - 1).to_pylist()]


def value_encoder(kind: str) -> Callable[[Any], bytes]:
    """A function from a value of a feature type to the bytes of Feast's `Value`; None is the empty message."""
    return {
        "float64": lambda value: b"" if value is None else _DOUBLE.pack(0x29, value),
        "float32": lambda value: b"" if value is None else _FLOAT.pack(0x35, value),
        "int64": lambda value: b"" if value is None else b"\x20" + _varint(value),
        "int32": lambda value: b"" if value is None else b"\x18" + _varint(value),
        "bool": lambda value: b"" if value is None else b"\x38" + _varint(int(value)),
        "string": _string,
    }[kind]


@lru_cache(maxsize=4096)
def stored_seconds(us: int) -> int:
    """How Feast's SQLite store keeps a moment: whole seconds of the naive UTC moment taken for local time.

    Its reader takes it back the same way, so the moment is right on a host of any time zone, as long as it is one host.
    """
    return int(from_us(us).replace(tzinfo=None).timestamp())


def timestamp_message(us: int) -> bytes:
    """A moment as the bytes of `google.protobuf.Timestamp`: how Feast's Redis store keeps it."""
    seconds, micros = divmod(us, 1_000_000)
    message = b"\x08" + _varint(seconds) if seconds else b""
    return message + (b"\x10" + _varint(micros * 1000) if micros else b"")


def text_of(value: Any) -> str | None:
    """What Feast keeps beside the value as text."""
    return None if value is None else str(value)


def _string(value: str | None) -> bytes:
    if value is None:
        return b""
    data = value.encode()
    return b"\x12" + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    number = value & 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
