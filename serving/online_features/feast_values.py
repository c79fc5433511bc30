"""Feast's `Value` message decoded without Feast: what an online store keeps for one feature of one row.

Numbers, booleans and text come first and at once, since models are made of them; everything else goes to
`feast_collections`.
"""

from __future__ import annotations

import struct

from pipelines.contracts.errors import ContractError

Scalar = float | int | str | bool | None
Value = Scalar | list["Value"] | dict[Scalar, "Value"]

_DOUBLE, _FLOAT = struct.Struct("<d").unpack_from, struct.Struct("<f").unpack_from
_DOUBLE_TAG, _FLOAT_TAG, _STRING_TAG, _BYTES_TAG = 5 << 3 | 1, 6 << 3 | 5, 2 << 3 | 2, 1 << 3 | 2
_INT32_TAG, _INT64_TAG, _BOOL_TAG, _TIMESTAMP_TAG = 3 << 3, 4 << 3, 7 << 3, 8 << 3
# How Feast writes a missing timestamp.
_NO_TIMESTAMP = -(1 << 63)


def decode(data: bytes) -> Value:
    """The value in a serialised `feast.types.Value`; None for the null value and for an empty message.

    Timestamps are their integer seconds; bytes become text, with escapes where they are no UTF-8; JSON, UUIDs and
    decimals stay text; lists and sets are lists, maps and structs are dicts. Raises ContractError for anything else.
    """
    if not data:
        return None
    tag = data[0]
    try:
        if tag == _DOUBLE_TAG:
            return _DOUBLE(data, 1)[0]  # type: ignore[no-any-return]  # the layout says float
        if tag in (_INT64_TAG, _INT32_TAG):
            return signed(varint(data, 1)[0])
        if tag == _STRING_TAG:
            length, at = varint(data, 1)
            return data[at : at + length].decode()
        if tag == _FLOAT_TAG:
            return _FLOAT(data, 1)[0]  # type: ignore[no-any-return]  # the layout says float
        if tag == _BOOL_TAG:
            return data[1] != 0
        if tag == _BYTES_TAG:
            length, at = varint(data, 1)
            return text(data[at : at + length])
        if tag == _TIMESTAMP_TAG:
            return seconds(varint(data, 1)[0])
        from serving.online_features.feast_collections import decode_rare

        return decode_rare(data)
    except (IndexError, ValueError, struct.error) as error:
        # The value itself may be personal: neither the log nor the answer shows it.
        got = f"{len(data)} bytes, the first {tag:#04x} ({error})"
        raise ContractError("online feature value", got=got, expected="feast.types.Value") from error


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number of base 128 at `at`, and where it ends. Raises IndexError for a torn one."""
    result = shift = 0
    while True:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return result, at
        shift += 7


def signed(number: int) -> int:
    """A varint as the two's complement of 64 bits that it stands for."""
    return number - (1 << 64) if number >= 1 << 63 else number


def seconds(number: int) -> int | None:
    """A timestamp in seconds; None for the one that stands for no timestamp."""
    value = signed(number)
    return None if value == _NO_TIMESTAMP else value


def text(data: bytes) -> str:
    """Bytes as text that can be logged."""
    return data.decode(errors="backslashreplace")
