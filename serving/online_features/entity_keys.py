"""Feast's entity key serialisation, version 3, without Feast: the key of a row in an online store.

Little endian: number of join keys; each name (sorted) as type STRING, length, UTF-8; then each value as type, length,
bytes. Published vectors made with Feast's own function: `tests/contract/vectors/feast.json`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pipelines.contracts.errors import ContractError

_STRING, _INT32, _INT64, _TIMESTAMP = 2, 3, 4, 8
_HEAD, _INT, _LONG = struct.Struct("<II").pack, struct.Struct("<IIi").pack, struct.Struct("<IIq").pack
_TYPES = {"string": _STRING, "int32": _INT32, "int64": _INT64, "timestamp": _TIMESTAMP}


class EntityKey:
    """Serialises values of one entity. `join_key_types`: join key name to `string`, `int32`, `int64` or `timestamp`."""

    def __init__(self, join_key_types: dict[str, str]) -> None:
        unknown = sorted(set(join_key_types.values()) - set(_TYPES))
        if unknown:
            raise ContractError("join key type", got=unknown[0], expected=f"one of {sorted(_TYPES)}")
        self.names = sorted(join_key_types)
        self._types = [_TYPES[join_key_types[name]] for name in self.names]
        encoded = [name.encode() for name in self.names]
        self._prefix = struct.pack("<I", len(encoded)) + b"".join(
            struct.pack("<II", _STRING, len(name)) + name for name in encoded
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntityKey) and (self._prefix, self._types) == (other._prefix, other._types)

    def __hash__(self) -> int:
        return hash((self._prefix, *self._types))

    def serialize(self, values: Sequence[object]) -> bytes:
        """The key's bytes; `values` in the order of `names`. Raises ContractError for a value of another type."""
        made = self._prefix
        for kind, value in zip(self._types, values, strict=True):
            if kind == _STRING:
                data = str(value).encode()
                made += _HEAD(_STRING, len(data)) + data
                continue
            try:
                number = int(value)  # type: ignore[call-overload] # what cannot be one raises, below
                if number != value:
                    raise ValueError("it has a fraction")
                made += _INT(kind, 4, number) if kind == _INT32 else _LONG(kind, 8, number)
            except (TypeError, ValueError, OverflowError, struct.error) as error:
                raise ContractError("entity key value", got=repr(value), expected=f"an integer ({error})") from None
        return made
