"""The point-in-time join against brute force: ties, expiry, nulls, creation times, and what it refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.adapters.delta_lake import connect
from pipelines.contracts.errors import ContractError
from pipelines.features import asof
from tests.asof_oracle import brute_force

BASE = datetime(2013, 3, 9, 22, tzinfo=UTC)  # the night New York's clocks change
MINUTE_US = 60_000_000


def _minute(value: int | None) -> datetime | None:
    return None if value is None else BASE + timedelta(minutes=value)


keys = st.sampled_from(["a", "b", None])
minutes = st.integers(0, 12)
entity_rows = st.lists(st.fixed_dictionaries({"k": keys, "t": st.one_of(minutes, st.none())}), min_size=1, max_size=8)
feature_rows = st.lists(
    st.fixed_dictionaries(
        {"k": keys, "t": st.one_of(minutes, st.none()), "created": st.one_of(st.integers(0, 20), st.none())}
    ),
    max_size=14,
)


@given(entity_rows, feature_rows, st.sampled_from([None, 0, 1, 5]), st.booleans())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_join_agrees_with_brute_force(
    entity: list[dict[str, Any]], rows: list[dict[str, Any]], ttl: int | None, cutoff: bool
) -> None:
    seen = set()
    unique = []
    for index, row in enumerate(rows):  # rows equal in keys, time and creation have no defined winner
        if (row["k"], row["t"], row["created"]) not in seen:
            seen.add((row["k"], row["t"], row["created"]))
            unique.append({**row, "value": float(index)})
    stamp = pa.timestamp("us", tz="UTC")
    frame = pa.table(
        {
            "n": pa.array(range(len(entity)), pa.int64()),
            "k": pa.array([row["k"] for row in entity], pa.string()),
            "event_timestamp": pa.array([_minute(row["t"]) for row in entity], stamp),
        }
    )
    features = pa.table(
        {
            "key": pa.array([row["k"] for row in unique], pa.string()),
            "event_timestamp": pa.array([_minute(row["t"]) for row in unique], stamp),
            "created_timestamp": pa.array([_minute(row["created"]) for row in unique], stamp),
            "value": pa.array([row["value"] for row in unique], pa.float64()),
        }
    )
    with connect() as connection:
        connection.register("f", features)
        join = asof.ViewJoin(
            relation="f", keys={"key": "k"}, features={"value": "v"}, ttl_us=ttl * MINUTE_US if ttl else ttl
        )
        answer = asof.join(connection, frame, "event_timestamp", [join], created_cutoff=cutoff)
    assert answer.column("n").to_pylist() == list(range(len(entity)))
    assert answer.column("v").to_pylist() == brute_force(entity, unique, ttl, cutoff)


def _refused(entity: pa.Table) -> str:
    with connect() as connection:
        connection.register("f", pa.table({"k": [1], "event_timestamp": [BASE], "v": [1.0]}))
        one = asof.ViewJoin(relation="f", keys={"k": "k"}, features={"v": "v"}, created=None)
        with pytest.raises(ContractError) as raised:
            asof.join(connection, entity, "event_timestamp", [one])
    return str(raised.value)


def test_a_frame_without_a_key_or_with_a_features_name_is_refused() -> None:
    assert "lacks column k" in _refused(pa.table({"event_timestamp": [BASE]}))
    assert "got ['v']" in _refused(pa.table({"event_timestamp": [BASE], "k": [1], "v": [2.0]}))


@pytest.mark.parametrize(
    ("asked", "there", "found"),
    [
        (pa.array([None, None], pa.null()), pa.array(["a", "b"]), [None, None]),
        (pa.array(["1", "x"]), pa.array([1, 2]), [1.0, None]),
        (pa.array([2, 1]), pa.array(["1", "2"]), [2.0, 1.0]),
        (pa.array([1.0, 2.5]), pa.array([1, 2]), [1.0, None]),
        (pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "c"]), [1.0, None]),
    ],
)
def test_keys_of_other_types_meet_or_match_nothing(asked: pa.Array, there: pa.Array, found: list[float | None]) -> None:
    with connect() as connection:
        connection.register("f", pa.table({"k": there, "event_timestamp": [BASE, BASE], "v": [1.0, 2.0]}))
        one = asof.ViewJoin(relation="f", keys={"k": "k"}, features={"v": "v"}, created=None)
        answer = asof.join(connection, pa.table({"k": asked, "event_timestamp": [BASE] * 2}), "event_timestamp", [one])
    assert answer.column("v").to_pylist() == found


def test_a_view_that_does_not_say_when_rows_were_created_is_not_cut() -> None:
    with connect() as connection:
        connection.register("f", pa.table({"k": [1], "event_timestamp": [BASE], "v": [1.0]}))
        one = asof.ViewJoin(relation="f", keys={"k": "k"}, features={"v": "v"}, created=None)
        frame = pa.table({"k": [1], "event_timestamp": [BASE]})
        answer = asof.join(connection, frame, "event_timestamp", [one], created_cutoff=True)
    assert answer.column("v").to_pylist() == [1.0]
