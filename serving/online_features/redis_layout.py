"""Feast's Redis layout, without Feast: one hash an entity key, in which every view of the entity has its fields.

    key     <entity key, serialisation version 3><project>
    field   murmur3_32("<view>:<feature>"), 4 bytes little endian     -> a `feast.types.Value`
    field   "_ts:<view>"                                              -> a `google.protobuf.Timestamp`

Published vectors made with Feast's own functions: `tests/contract/vectors/feast_redis.json`.
"""

from __future__ import annotations

from functools import lru_cache

from pipelines.contracts.errors import ContractError
from serving.online_features.feast_values import varint

_SECONDS, _NANOS = 0x08, 0x10


def feature_field(view: str, feature: str) -> bytes:
    """The hash field of a feature."""
    return _murmur3_32(f"{view}:{feature}".encode()).to_bytes(4, "little")


def stamp_field(view: str) -> bytes:
    """The hash field that holds the event time of the view's row."""
    return f"_ts:{view}".encode()


@lru_cache(maxsize=4096)
def stamp_us(message: bytes) -> int:
    """A serialised `google.protobuf.Timestamp` in microseconds since the epoch. Raises ContractError."""
    seconds = nanos = at = 0
    while at < len(message):
        tag = message[at]
        number, at = varint(message, at + 1)
        if tag == _SECONDS:
            seconds = number - (1 << 64) if number >= 1 << 63 else number
        elif tag == _NANOS:
            nanos = number
        else:
            raise ContractError("event time of a feature row", got=message.hex(), expected="a protobuf Timestamp")
    return seconds * 1_000_000 + nanos // 1000


def _murmur3_32(data: bytes) -> int:
    """MurmurHash3 x86 32-bit with seed 0 (Austin Appleby, public domain). Run once a feature and plan, never a request.

    The serving environment needs no package for the few names a plan has.
    """
    mask = 0xFFFFFFFF
    whole = len(data) & ~3
    hashed = 0
    for at in range(0, whole, 4):
        hashed ^= _mixed(int.from_bytes(data[at : at + 4], "little"))
        hashed = (hashed << 13 | hashed >> 19) & mask
        hashed = (hashed * 5 + 0xE6546B64) & mask
    if whole < len(data):
        hashed ^= _mixed(int.from_bytes(data[whole:], "little"))
    hashed ^= len(data)
    hashed = (hashed ^ hashed >> 16) * 0x85EBCA6B & mask
    hashed = (hashed ^ hashed >> 13) * 0xC2B2AE35 & mask
    return hashed ^ hashed >> 16


def _mixed(block: int) -> int:
    block = block * 0xCC9E2D51 & 0xFFFFFFFF
    block = (block << 15 | block >> 17) & 0xFFFFFFFF
    return block * 0x1B873593 & 0xFFFFFFFF
