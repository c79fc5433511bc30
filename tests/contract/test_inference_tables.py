"""The inference log's writer: each batch once, also when its files are merged."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.inference_tables import InferenceTables


def rows(batch: int) -> pa.Table:
    return pa.table({"model": ["m", "k"], "seq": pa.array([2 * batch, 2 * batch + 1], pa.int64())})


def test_a_batch_is_stored_once_over_merges_and_restarts(tmp_path: Path) -> None:
    lake = DeltaLake(tmp_path)
    for start in (0, 9):
        tables = InferenceTables(DeltaLake(tmp_path), merge_every=4)
        for batch in range(start, start + 12):
            assert tables.append("label", rows(batch), batch) is (start == 0 or batch > 11)
            assert not tables.append("label", rows(batch), batch)
    assert sorted(lake.read("inference/label")["seq"].to_pylist()) == list(range(2 * 21))
    assert len(lake.uris("inference/label")) < 2 * 8
    assert lake.applied("inference/label", "collector") == 20


def test_a_reader_of_an_older_version_still_finds_its_files(tmp_path: Path) -> None:
    lake, tables = DeltaLake(tmp_path), InferenceTables(DeltaLake(tmp_path), merge_every=5)
    for batch in range(4):
        tables.append("label", rows(batch), batch)
    before = lake.version("inference/label")
    for batch in range(4, 8):
        tables.append("label", rows(batch), batch)
    assert lake.read("inference/label", version=before).num_rows == 8
