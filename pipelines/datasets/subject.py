"""A subject whose rows are to go: the keys it is found by, and the tombstone that stays in its place.

A tombstone is the installation's keyed hash over names and values of the keys, as the lake holds them. It tells
nobody whose it is, and lets whoever has the key of the hash tell that a row which comes later is the subject's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import msgspec
import pyarrow as pa

from pipelines.contracts.canonical import canonical_json
from pipelines.contracts.pii import KeyedHash

# No text of a column: a tombstone cannot be taken for the hash of a value.
_DOMAIN = "\x00slipway erased subject\x00"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One subject. `keys`: for each key column the texts that the lake may hold: the value's own, and its keyed hash.

    It is found where all of its keys agree.
    """

    entity: str
    keys: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, entity: str, values: Mapping[str, str], keyed: KeyedHash) -> Subject:
        """The subject with these values of its keys."""
        return cls(entity=entity, keys={name: (value, keyed.of(value)) for name, value in sorted(values.items())})

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that tells the subject by itself; none where only several keys together do."""
        return next(iter(self.keys.values())) if len(self.keys) == 1 else ()

    def tombstones(self, keyed: KeyedHash) -> list[str]:
        """The tombstones of the subject, one for each way in which its keys may be stored."""
        return sorted(tombstone(keyed, list(self.keys), form) for form in product(*self.keys.values()))

    def where(self, schema: pa.Schema) -> str | None:
        """SQL that selects the subject's rows of a table; None when the table cannot hold any."""
        parts = []
        for name, texts in self.keys.items():
            if name not in schema.names:
                return None
            kind = schema.field(name).type
            if pa.types.is_integer(kind):
                numbers = [text for text in texts if text.lstrip("-").isdecimal()]
                parts.append(f'"{name}" IN ({", ".join(numbers)})')
                if not numbers:
                    return None
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
                parts.append(f'"{name}" IN ({", ".join(map(quoted, texts))})')
            else:
                return None
        return " AND ".join(parts)

    def marks(self, columns: Mapping[str, Sequence[Any]], names: Mapping[str, str] | None = None) -> list[bool]:
        """Which rows of columns are the subject's. names: the column of each key, where it has another name."""
        held = [(texts, columns.get((names or {}).get(key, key))) for key, texts in self.keys.items()]
        if any(column is None for _, column in held):
            return [False] * max((len(column) for column in columns.values()), default=0)
        rows = zip(*(column for _, column in held if column is not None), strict=True)
        wanted = [set(texts) for texts, _ in held]
        return [all(text_of(value) in texts for value, texts in zip(row, wanted, strict=True)) for row in rows]


class Tombstones:
    """All tombstones of an installation. stones: by the names of the keys, erasures by tombstone."""

    def __init__(self, keyed: KeyedHash | None, stones: Mapping[tuple[str, ...], Mapping[str, str]]) -> None:
        self._keyed = keyed
        self._stones = stones

    def __bool__(self) -> bool:
        return bool(self._stones)

    def key_names(self) -> list[tuple[str, ...]]:
        """The names of the keys by which subjects were erased."""
        return list(self._stones)

    def of(self, columns: Mapping[str, Sequence[Any]], names: Mapping[str, str] | None = None) -> dict[int, str]:
        """The rows whose subject was erased, with the erasure. names: as in `Subject.marks`."""
        found: dict[int, str] = {}
        for keys, stones in self._stones.items():
            held = [columns.get((names or {}).get(key, key)) for key in keys]
            if self._keyed is None or any(column is None for column in held):
                continue
            known: dict[tuple[Any, ...], str | None] = {}
            for number, row in enumerate(zip(*(column for column in held if column is not None), strict=True)):
                if row not in known:
                    texts = [text_of(value) for value in row]
                    whole = [text for text in texts if text is not None]
                    stone = tombstone(self._keyed, keys, whole) if len(whole) == len(keys) else ""
                    known[row] = stones.get(stone)
                if (erasure := known[row]) is not None:
                    found.setdefault(number, erasure)
        return found

    def of_table(self, rows: pa.Table) -> dict[int, str]:
        """As `of`, for a table whose columns have the keys' names."""
        wanted = {name for keys in self._stones for name in keys} & set(rows.column_names)
        return self.of({name: rows.column(name).to_pylist() for name in wanted}) if wanted else {}


def tombstone(keyed: KeyedHash, names: Sequence[str], texts: Sequence[str]) -> str:
    """The keyed hash of a subject: key names (in order) with their values as they are stored."""
    pairs = [[name, text] for name, text in zip(names, texts, strict=True)]
    return keyed.of(_DOMAIN + canonical_json(pairs).decode())


def text_of(value: Any) -> str | None:
    """A key's value as text, the same for a number however it is stored."""
    if value is None:
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
