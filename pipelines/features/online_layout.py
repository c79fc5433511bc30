"""Feast's layout of an online row, without Feast: entity keys (serialisation version 3) and `Value` messages.

A contract test reads back with Feast's SDK what is written with these.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.clocks import from_us

_STRING, _INT32, _INT64 = 2, 3, 4
_KEY_TYPES = {"string": _STRING, "int32": _INT32, "int64": _INT64}
_DOUBLE = struct.Struct("<Bd")
_FLOAT = struct.Struct("<Bf")
_FIXED = {"float64": (0x29, 8), "float32": (0x35, 4)}  # tag and width of what is stored as it lies in memory


Frame = Callable[[int], tuple[bytes, bytes]]


def bare(length: int) -> tuple[bytes, bytes]:  # noqa: ARG001 - a frame is told the length
    """Nothing around a message."""
    return b"", b""


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


def keys_of(encoded: bytes) -> dict[str, str | int]:
    """The join keys of an entity key's bytes, by name. Raises ValueError for bytes that are none."""
    try:
        (count,), at = struct.unpack_from("<I", encoded), 4
        parts: list[str | int] = []
        for _ in range(2 * count):
            kind, length = struct.unpack_from("<II", encoded, at)
            data = encoded[at + 8 : at + 8 + length]
            parts.append(
                data.decode() if kind == _STRING else struct.unpack({_INT32: "<i", _INT64: "<q"}[kind], data)[0]
            )
            at += 8 + length
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError("bytes of a Feast entity key") from error
    if at != len(encoded):
        raise ValueError("bytes of a Feast entity key")
    return {str(name): value for name, value in zip(parts[:count], parts[count:], strict=True)}


def messages_of(kind: str, column: pa.ChunkedArray, frame: Frame = bare) -> list[bytes]:
    """The column of a feature type as the bytes of Feast's `Value`s: a whole column of numbers at once.

    frame: what stands before and behind a message of a length, put around each.
    """
    if kind in _FIXED and column.null_count == 0:
        tag, width = _FIXED[kind]
        before, behind = frame(1 + width)
        made = np.empty((len(column), len(before) + 1 + width + len(behind)), dtype=np.uint8)
        made[:, : len(before) + 1] = np.frombuffer(before + bytes([tag]), np.uint8)
        made[:, made.shape[1] - len(behind) :] = np.frombuffer(behind, np.uint8)
        values = np.ascontiguousarray(column.to_numpy().astype(f"<f{width}", copy=False))
        made[:, len(before) + 1 : len(before) + 1 + width] = values.view(np.uint8).reshape(-1, width)
        whole: list[bytes] = made.view(f"V{made.shape[1]}").ravel().tolist()
        return whole
    encode = value_encoder(kind)

    def framed(value: Any) -> bytes:
        message = encode(value)
        before, behind = frame(len(message))
        return before + message + behind

    return _by_value(column, framed)


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """What Feast keeps as text beside the values of a column."""
    if pa.types.is_floating(column.type):
        return _float_texts(column)
    return _by_value(column, text_of)


def _float_texts(column: pa.ChunkedArray) -> list[str | None]:
    """`str` of every number, by a JSON encoder: its shortest digits are Python's, but for the exponents."""
    if len(column) == 0:
        return []
    values = column.to_pylist()
    texts: list[str | None] = [*msgspec.json.encode(values).decode()[1:-1].split(",")]
    numbers = column.cast(pa.float64()).to_numpy()
    size = np.abs(numbers)
    # Both edges well inside the range in which neither writes an exponent; what is null or no number is outside, too.
    plain = ((size >= 1e-3) & (size < 1e15)) | (numbers == 0)
    for place in np.flatnonzero(~plain):
        texts[place] = text_of(values[place])
    return texts


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
