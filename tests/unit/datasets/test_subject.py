"""A subject and its tombstone: found however its key is stored, and by nobody who has not the key of the hash."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.pii import KeyedHash
from pipelines.datasets.subject import Subject, Tombstones
from pipelines.features.online_layout import key_encoder, keys_of

KEYED = KeyedHash("a key")
DUCKDB = duckdb.connect()
# No command line can hold a NUL, and no SQL.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), st.integers(0, 5), st.booleans())
def test_the_sql_the_marks_and_the_tombstones_find_the_same_rows(
    rows: list[tuple[str, str]], which: int, hashed: bool
) -> None:
    one = rows[which % len(rows)]
    subject = Subject.of("pair", {"a": one[0], "b": one[1]}, KEYED)
    stored = [(KEYED.of(a) if hashed else a, b) for a, b in rows]
    table = pa.table({"a": [a for a, _ in stored], "b": [b for _, b in stored]})
    wanted = [row == one for row in rows]
    assert subject.marks(table.to_pydict()) == wanted
    stones = Tombstones(KEYED, {("a", "b"): dict.fromkeys(subject.tombstones(KEYED), "erasure-1")})
    assert stones.of_table(table) == {n: "erasure-1" for n, hit in enumerate(wanted) if hit}
    where = subject.where(table.schema)
    DUCKDB.register("rows", table)
    assert DUCKDB.execute(f"SELECT count(*) FROM rows WHERE {where}").fetchone() == (sum(wanted),)


@pytest.mark.parametrize("stored", [[41, 42], [41.0, 42.0], ["41", "42"]])
def test_a_number_is_the_same_key_however_it_is_stored(stored: list[object]) -> None:
    subject = Subject.of("passenger", {"passenger": "42"}, KEYED)
    assert subject.marks({"passenger": stored}) == [False, True]
    stones = Tombstones(KEYED, {("passenger",): dict.fromkeys(subject.tombstones(KEYED), "erasure-7")})
    assert stones.of({"passenger": stored}) == {1: "erasure-7"}
    assert stones.of({"who": [*stored, None]}, {"passenger": "who"}) == {1: "erasure-7"}
    assert stones.of({"other": stored}) == {}


def test_a_table_that_cannot_hold_the_subject_is_not_asked() -> None:
    subject = Subject.of("passenger", {"passenger": "O'Hara"}, KEYED)
    assert subject.where(pa.schema([("passenger", pa.int64())])) is None
    assert subject.where(pa.schema([("other", pa.string())])) is None
    assert "'O''Hara'" in str(subject.where(pa.schema([("passenger", pa.string())])))


def test_a_tombstone_needs_the_key_and_is_no_hash_of_a_value() -> None:
    subject = Subject.of("passenger", {"passenger": "42"}, KEYED)
    stones = subject.tombstones(KEYED)
    assert len(stones) == 2
    assert not {KEYED.of("42"), "42"} & set(stones)
    assert not set(stones) & set(subject.tombstones(KeyedHash("another key")))


@settings(deadline=None)
@given(st.dictionaries(texts, st.one_of(texts, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=3))
def test_an_entity_key_of_the_online_store_is_read_back(keys: dict[str, str | int]) -> None:
    types = {name: "string" if isinstance(value, str) else "int64" for name, value in keys.items()}
    names, encode = key_encoder(types)
    encoded = encode([keys[name] for name in names])
    assert keys_of(encoded) == keys
    for broken in (encoded[:-1], encoded + b"x", b"slipway:materialised:"):
        with pytest.raises(ValueError, match="entity key"):
            keys_of(broken)
