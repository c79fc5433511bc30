"""The lake's contract: atomic appends that happen once, partition replacement, reads in UTC microseconds."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.adapters.delta_lake import MICROS_UTC, DeltaLake, connect
from pipelines.contracts.errors import DataError, NotFoundError


def _rows(day: int, count: int, offset: int = 0) -> pa.Table:
    base = datetime(2013, 1, day, 5, tzinfo=UTC)
    return pa.table(
        {
            "n": pa.array(range(offset, offset + count), pa.int64()),
            "at": pa.array([base + timedelta(minutes=i) for i in range(count)], pa.timestamp("us", tz="UTC")),
            "day": pa.array([date(2013, 1, day)] * count, pa.date32()),
        }
    )


def test_an_append_with_a_transaction_already_applied_changes_nothing(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    assert lake.append("zero", _rows(1, 3), txn=("collector", 0))
    assert not lake.append("zero", _rows(1, 3), txn=("collector", 0))
    assert lake.append("t", _rows(1, 3), ["day"], txn=("collector", 7))
    assert not lake.append("t", _rows(1, 3), ["day"], txn=("collector", 7))
    assert not lake.append("t", _rows(1, 3), ["day"], txn=("collector", 6))
    assert lake.append("t", _rows(2, 2), ["day"], txn=("collector", 8))
    assert lake.append("t", _rows(2, 1), ["day"], txn=("another", 1))
    assert lake.read("t").num_rows == 6
    assert lake.applied("t", "collector") == 8
    assert lake.applied("t", "nobody") is None


def test_replacing_a_partition_is_one_commit_and_leaves_the_others(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    lake.append("t", _rows(1, 3), ["day"])
    lake.append("t", _rows(2, 4), ["day"])
    before = lake.version("t")
    lake.replace("t", _rows(2, 1, offset=100), ["day"], where="day = '2013-01-02'")
    assert before is not None
    assert lake.version("t") == before + 1
    assert sorted(lake.read("t", ["n"]).column("n").to_pylist()) == [0, 1, 2, 100]
    assert sorted(lake.read("t", ["n"], version=before).column("n").to_pylist()) == [0, 0, 1, 1, 2, 2, 3]


def test_a_partition_can_be_replaced_by_nothing(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    lake.append("t", _rows(1, 3), ["day"])
    lake.replace("t", _rows(1, 0), ["day"], where="day = '2013-01-01'")
    assert lake.exists("t")
    table = lake.read("t")
    assert table.num_rows == 0
    assert table.schema.field("at").type == MICROS_UTC


def test_times_come_back_in_microseconds_utc_whatever_they_went_in_as(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    moment = datetime(2013, 3, 10, 7, 30, 0, 123456, tzinfo=UTC)
    for name, kind in {"naive": pa.timestamp("ns"), "york": pa.timestamp("us", tz="America/New_York")}.items():
        value = moment.replace(tzinfo=None) if name == "naive" else moment
        lake.append(name, pa.table({"at": pa.array([value], kind)}))
        read = lake.read(name)
        assert read.schema.field("at").type == MICROS_UTC
        assert read.column("at").to_pylist() == [moment]


def test_partition_values_keep_their_types_and_prune(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    lake.append("t", pa.table({"model": ["a b/c", "007"], "n": [1, 2]}), ["model"])
    read = lake.read("t", where="model = '007'")
    assert read.to_pydict() == {"model": ["007"], "n": [2]}
    assert lake.read("t", where="model = 'a b/c'").column("n").to_pylist() == [1]
    with connect() as connection:
        lake.bind(connection, "v", "t")
        assert connection.execute("select count(*) from v").fetchone() == (2,)


def test_a_changed_schema_is_refused(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    lake.append("t", pa.table({"n": [1]}))
    with pytest.raises(DataError, match="lake table t"):
        lake.append("t", pa.table({"n": [1], "more": [2]}))
    with pytest.raises(DataError):
        lake.append("t", pa.table({"n": ["text"]}))
    assert lake.read("t").num_rows == 1


def test_a_missing_table_names_those_there_are(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    lake.append("datasets/flights", pa.table({"n": [1]}))
    with pytest.raises(NotFoundError, match="datasets/flights"):
        lake.read("datasets/flihgts")
    assert not lake.exists("datasets/flihgts")
    assert lake.version("nothing") is None


def test_overlapping_spans_of_two_writers_enter_once(tmp_path: Path) -> None:
    def rows(after: int | None, until: int) -> pa.Table:
        return pa.table({"n": pa.array(range((after or 0) + 1, until + 1), pa.int64())})

    lake, other = DeltaLake(tmp_path), DeltaLake(tmp_path)
    assert lake.advance("t", "ingest", 5, lambda last: rows(last, 5)) == 5
    asked: list[int | None] = []

    def overtaken(last: int | None) -> pa.Table:
        asked.append(last)
        if len(asked) == 1:  # the other one commits between our look and our commit
            assert other.advance("t", "ingest", 8, lambda inner: rows(inner, 8)) == 3
        return rows(last, 10)

    assert lake.advance("t", "ingest", 10, overtaken) == 2
    assert asked == [5, 8]
    assert lake.advance("t", "ingest", 9, lambda last: rows(last, 9)) is None
    assert sorted(lake.read("t").column("n").to_pylist()) == list(range(1, 11))


def test_a_table_is_created_by_one_of_two_writers(tmp_path: Path) -> None:
    lake, other = DeltaLake(tmp_path), DeltaLake(tmp_path)
    asked: list[int | None] = []

    def overtaken(last: int | None) -> pa.Table:
        asked.append(last)
        if len(asked) == 1:
            other.advance("t", "ingest", 1, lambda _: pa.table({"n": [1]}))
        return pa.table({"n": [2]}) if last == 1 else pa.table({"n": [1, 2]})

    assert lake.advance("t", "ingest", 2, overtaken) == 1
    assert sorted(lake.read("t").column("n").to_pylist()) == [1, 2]
