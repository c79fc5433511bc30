"""What a process has read of a Delta table is read again exactly when the table has gone on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.adapters import delta_snapshots
from pipelines.adapters.delta_lake import DeltaLake


def rows(*values: int) -> pa.Table:
    return pa.table({"value": pa.array(values, pa.int64())})


def values(lake: DeltaLake, version: int | None = None) -> list[int]:
    return sorted(lake.read("t", version=version).column("value").to_pylist())


class Loads:
    """Loads a table, and counts how often."""

    def __init__(self, uri: Path) -> None:
        self.uri, self.count = str(uri), 0

    def of(self, version: int | None = None) -> DeltaTable:
        return delta_snapshots.snapshot(self.uri, version, lambda: self._load(version))

    def _load(self, version: int | None) -> DeltaTable:
        self.count += 1
        return DeltaTable(self.uri, version=version)


@pytest.fixture
def lake(tmp_path: Path) -> DeltaLake:
    made = DeltaLake(tmp_path)
    made.append("t", rows(1))
    return made


def test_a_version_is_loaded_once_until_somebody_else_commits(lake: DeltaLake, tmp_path: Path) -> None:
    loads = Loads(tmp_path / "t")
    before = loads.of()
    assert loads.of() is before
    write_deltalake(tmp_path / "t", rows(2), mode="append")
    assert [loads.of().version() for _ in range(2)] == [before.version() + 1] * 2
    assert loads.count <= 2  # the first may have been kept by the commit that made it


def test_what_another_writer_commits_is_read_at_once(lake: DeltaLake, tmp_path: Path) -> None:
    for number in range(2, 6):
        write_deltalake(tmp_path / "t", rows(number), mode="append")
        assert values(lake) == list(range(1, number + 1))


def test_what_this_process_commits_is_read_without_loading_it(lake: DeltaLake, tmp_path: Path) -> None:
    lake.append("t", rows(2), txn=("app", 7))
    loads = Loads(tmp_path / "t")
    assert [loads.of().version(), loads.count] == [1, 0]
    assert lake.applied("t", "app") == 7
    assert values(lake) == [1, 2]


def test_older_versions_stay_what_they_were(lake: DeltaLake) -> None:
    for number in (2, 3):
        lake.append("t", rows(number))
    assert [values(lake, version) for version in (2, 0, 1, 0)] == [[1, 2, 3], [1], [1, 2], [1]]
    assert values(lake) == [1, 2, 3]


def test_a_table_made_anew_in_the_same_place_is_another_table(lake: DeltaLake, tmp_path: Path) -> None:
    assert values(lake) == values(lake, 0) == [1]
    shutil.rmtree(tmp_path / "t")
    assert not lake.exists("t")
    write_deltalake(tmp_path / "t", rows(8, 9))
    assert values(lake) == values(lake, 0) == [8, 9]


def test_a_process_keeps_a_bounded_number_of_versions(lake: DeltaLake, tmp_path: Path) -> None:
    loads, count = Loads(tmp_path / "t"), delta_snapshots.KEPT + 3
    for number in range(count):
        write_deltalake(tmp_path / "t", rows(number), mode="append")
        assert loads.of().version() == number + 1
    loads.of(1)
    assert loads.count == count + 1, "the first one had to go"
    loads.of(count)
    assert loads.count == count + 1, "the last one had not"
