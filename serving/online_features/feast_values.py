"""Feast's `Value` message for scalars, decoded without Feast: what an online store keeps in a value column."""

from __future__ import annotations

import struct

from pipelines.contracts.errors import ContractError

Value = float | int | str | bool | None

_BYTES, _STRING, _INT32, _INT64, _DOUBLE, _FLOAT, _BOOL, _TIMESTAMP, _NULL = 1, 2, 3, 4, 5, 6, 7, 8, 19
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def decode(data: bytes) -> Value:
    """The scalar in a serialised `feast.types.Value`; None for the null value and for an empty message.

    Timestamps are their integer seconds, bytes must be UTF-8 text. Raises ContractError for lists, maps and sets.
    """
    if not data:
        return None
    tag, at = _varint(data, 0)
    field, wire = tag >> 3, tag & 7
    if wire == _FIXED64 and field == _DOUBLE:
        return float(struct.unpack_from("<d", data, at)[0])
    if wire == _FIXED32 and field == _FLOAT:
        return float(struct.unpack_from("<f", data, at)[0])
    if wire == _LENGTH and field in (_STRING, _BYTES):
        length, at = _varint(data, at)
        return data[at : at + length].decode()
    if wire == _VARINT and field in (_INT32, _INT64, _BOOL, _TIMESTAMP, _NULL):
        number, _ = _varint(data, at)
        if field == _BOOL:
            return bool(number)
        if field == _NULL:
            return None
        return number - (1 << 64) if number >= 1 << 63 else number
    raise ContractError("online feature value", got=f"field {field} of feast.types.Value", expected="a scalar")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at += 1
        if not byte & 0x80:
            return result, at
        shift += 7
