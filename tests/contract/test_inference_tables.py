"""The inference log's writer: each batch once, also when its files are merged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.inference_log import answers
from pipelines.adapters.inference_tables import APP, InferenceTables
from pipelines.adapters.lake_maintenance import maintain, merge
from pipelines.collect.numbering import Counters, number
from pipelines.collect.tables import to_tables
from pipelines.contracts.events import Assignment, EventId, Response
from tests.s3_tables import lake_on_s3


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


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.proof)])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DeltaLake]:
    if request.param == "local":
        yield DeltaLake(tmp_path / "lake")
        return
    with lake_on_s3(request.getfixturevalue("s3")) as on_s3:
        yield on_s3


def pairs(batch: int) -> dict[str, pa.Table]:
    """One request of each of two models that both arms score, the challenger behind the answer."""
    events: list[Assignment | Response] = []
    for at, model in enumerate(("m", "k")):
        n, request = 6 * batch + 3 * at, f"{model}{batch}"
        stamps: dict[str, Any] = {"model": model, "request_id": request, "event_us": n, "wall_us": n, "rollout_id": "r"}
        events.append(
            Assignment(
                id=EventId("gw", 0, 1, n),
                arm="champion",
                share_ppm=0,
                salt="",
                unit=request,
                mode="shadow",
                stage="shadow",
                route_version=1,
                champion="a",
                paired=True,
                **stamps,
            )
        )
        answer: dict[str, Any] = {"release": "a", "status": "ok", "score": [0.5]} | stamps
        events.append(Response(id=EventId("gw", 0, 1, n + 1), arm="champion", served=True, latency_us=900, **answer))
        second = answer | {"release": "b", "shadow": True, "latency_us": 1500, "beside_us": 1400 + batch}
        events.append(Response(id=EventId("gw", 0, 1, n + 2), arm="challenger", served=False, **second))
    return to_tables(number(events, Counters(), {})[0], batch)


def test_a_table_that_is_older_than_a_column_gets_it_and_is_read_like_any_other(lake: DeltaLake) -> None:
    """Written without `beside_us` by one process, gone on with by another; then merged, blanked, and merged again."""
    older = InferenceTables(lake)
    for batch in range(2):
        made = pairs(batch)
        older.append("assignment", made["assignment"], batch)
        older.append("response", made["response"].drop_columns("beside_us"), batch)
    assert "beside_us" not in lake.schema("inference/response").names
    assert len(answers(lake, "m", "a", 1_000).latency_ms) == 2

    tables = InferenceTables(DeltaLake(lake.root, lake._options), merge_every=2)  # as another process opens it
    for batch in range(2, 5):
        for kind, found in pairs(batch).items():
            assert tables.append(kind, found, batch)
            assert not tables.append(kind, found, batch)
    expected = {f"{model}{batch}": 1400 + batch if batch >= 2 else None for batch in range(5) for model in "mk"}

    def stored() -> dict[str, int | None]:
        found = lake.read("inference/response", ["request_id", "beside_us"], "shadow").to_pylist()
        assert len(found) == len(expected)
        return {row["request_id"]: row["beside_us"] for row in found}

    assert stored() == expected
    assert lake.applied("inference/response", APP) == 4
    asked = pa.table({"request_id": ["m1", "m3"]})
    merge(lake, "inference/response", asked, "t.request_id = s.request_id", {"features": "CAST(NULL AS VARCHAR)"})
    assert stored() == expected
    maintain(lake, "inference/response", retention_hours=0)
    assert stored() == expected
    served = answers(lake, "m", "a", 1_000)
    assert served.latency_ms.tolist() == [0.9] * 5, "what clients waited for"
