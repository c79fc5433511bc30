"""Datasets from files: what is new is taken once, bad rows are set aside with reasons, an unfit batch is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.clocks import parse_event_time
from pipelines.contracts.errors import DataError, NotFoundError, SpecError
from pipelines.settings import Settings
from pipelines.wiring import datasets

SPEC: dict[str, Any] = {
    "name": "orders",
    "owner": "o",
    "description": "d",
    "source": {"kind": "file", "path": "data/orders.csv", "format": "csv"},
    "key": ["id"],
    "event_time": "at",
    "known_at": "at",
    "arrival_delay": "1h event_time",
    "columns": {
        "id": {"type": "int64"},
        "at": {"type": "timestamp"},
        "amount": {"type": "float64", "min": 0, "max": 1000},
        "shop": {"type": "string", "nullable": True},
    },
    "checks": [{"expect": "column_values_to_be_in_set", "column": "shop", "value_set": ["a", "b"]}],
    "stop": {"quarantined_share": 0.5, "min_rows": 0},
}
GOOD = [
    "1,2024-01-01T00:00:00Z,10.5,a",
    "2,2024-01-01T01:00:00Z,20,b",
    "3,2024-01-01T02:00:00Z,30,",
    "4,2024-01-02T00:00:00Z,40,a",
]


def _at(text: str) -> int:
    return parse_event_time(text)


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Settings]:
    """Make (or change) a project of one dataset; gives its settings."""

    def make(rows: list[str] | None = None, header: str = "id,at,amount,shop", **changes: Any) -> Settings:
        include = tmp_path / "include"
        for folder in ("datasets", "data"):
            (include / folder).mkdir(parents=True, exist_ok=True)
        (include / "datasets" / "orders.yaml").write_text(json.dumps({**SPEC, **changes}))
        if rows is not None:
            (include / "data" / "orders.csv").write_text("\n".join([header, *rows]) + "\n")
        return Settings(home=tmp_path / "home", include_dir=include, clock="replay")

    return make


def _published(settings: Settings) -> list[int]:
    return sorted(DeltaLake(settings.lake).read("datasets/orders", ["id"]).column("id").to_pylist())


def _quarantined(settings: Settings) -> dict[int, str]:
    lake = DeltaLake(settings.lake)
    if not lake.exists("quarantine/orders"):
        return {}
    rows = lake.read("quarantine/orders").to_pylist()
    return {int(json.loads(row["row"])["id"]): row["reason"] for row in rows}


def test_only_what_became_known_is_taken_and_only_once(project: Callable[..., Settings]) -> None:
    settings = project(GOOD)
    first = datasets.ingest(settings, "orders", _at("2024-01-01T02:00:00Z"))
    assert first.rows == 2  # the arrival delay of an hour keeps the third back
    assert _published(settings) == [1, 2]
    again = datasets.ingest(settings, "orders", _at("2024-01-01T02:00:00Z"))
    assert (again.rows, again.version) == (0, first.version)
    earlier = datasets.ingest(settings, "orders", _at("2024-01-01T00:00:00Z"))
    assert (earlier.rows, earlier.version) == (0, first.version)
    assert datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z")).rows == 2
    assert _published(settings) == [1, 2, 3, 4]
    assert datasets.published_through(settings, "orders") == _at("2024-01-03T00:00:00Z")


@pytest.mark.parametrize("died_behind", ["stage", "check", "quarantine", "publish"])
def test_an_ingest_that_died_anywhere_is_finished_by_repeating_it(
    project: Callable[..., Settings], died_behind: str
) -> None:
    settings = project([*GOOD, "5,2024-01-01T03:00:00Z,-1,a"])
    as_of = _at("2024-01-03T00:00:00Z")
    ref = datasets.stage(settings, "orders", as_of)
    for step, job in {"check": datasets.check, "quarantine": datasets.quarantine, "publish": datasets.publish}.items():
        if died_behind == "stage":
            break
        job(settings, ref)
        if step == died_behind:
            break
    datasets.ingest(settings, "orders", as_of)
    datasets.publish(settings, ref)  # the first run's task wakes up late
    assert _published(settings) == [1, 2, 3, 4]
    assert DeltaLake(settings.lake).read("quarantine/orders").num_rows == 1


def test_two_runs_of_overlapping_spans_publish_every_row_once(project: Callable[..., Settings]) -> None:
    settings = project(GOOD)
    early = datasets.stage(settings, "orders", _at("2024-01-01T02:00:00Z"))
    late = datasets.stage(settings, "orders", _at("2024-01-03T00:00:00Z"))
    datasets.check(settings, early)
    datasets.quarantine(settings, early)
    assert datasets.publish(settings, early).rows == 2
    assert datasets.check(settings, late) == 0
    datasets.quarantine(settings, late)
    assert datasets.publish(settings, late).rows == 2
    assert _published(settings) == [1, 2, 3, 4]


def test_a_read_gives_only_what_was_known_by_then(project: Callable[..., Settings]) -> None:
    settings = project(GOOD)
    datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    assert datasets.read(settings, "orders", _at("2024-01-01T02:59:59Z")).column("id").to_pylist() == [1, 2]
    assert datasets.read(settings, "orders", _at("2024-01-01T03:00:00Z")).column("id").to_pylist() == [1, 2, 3]
    after = datasets.read(settings, "orders", _at("2024-01-03T00:00:00Z"), after_us=_at("2024-01-01T02:00:00Z"))
    assert after.column("id").to_pylist() == [3, 4]


def test_bad_rows_are_set_aside_each_with_its_reasons(project: Callable[..., Settings]) -> None:
    bad = [
        "10,2024-01-01T04:00:00Z,-5,a",
        "11,2024-01-01T04:00:00Z,1,c",
        "12,2024-01-01T04:00:00Z,,a",
        "13,2024-01-01T04:00:00Z,nan,a",
        "14,2024-01-01T04:00:00Z,lots,a",
        "15,yesterday,1,a",
        "1,2024-01-01T05:00:00Z,11,a",
        "16,2024-01-01T04:00:00Z,5000,z",
    ]
    settings = project([*GOOD, *(f"{i},2024-01-01T06:00:00Z,1,a" for i in range(100, 110)), *bad])
    published = datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    assert published.quarantined == len(bad)
    reasons = _quarantined(settings)
    assert reasons[10] == "amount is below 0 or above 1000"
    assert reasons[11].startswith("column_values_to_be_in_set")
    assert reasons[12] == reasons[13] == "amount is missing"
    assert reasons[14] == "amount: 'lots' is not a number (float64)"
    assert reasons[15] == "at: 'yesterday' is not a timestamp (timestamp)"
    assert reasons[1] == "duplicate id"
    assert reasons[16].startswith("amount is below 0 or above 1000; column_values")
    assert 1 in _published(settings)  # the first of the two stays


def test_a_key_that_is_published_already_is_set_aside(project: Callable[..., Settings]) -> None:
    settings = project(GOOD)
    datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    settings = project([*GOOD, "2,2024-01-03T01:00:00Z,99,a", "5,2024-01-03T01:00:00Z,99,a"])
    assert datasets.ingest(settings, "orders", _at("2024-01-04T00:00:00Z")).rows == 1
    assert _quarantined(settings) == {2: "its key is already published"}


def test_a_row_that_turns_up_late_is_known_from_then_on(project: Callable[..., Settings]) -> None:
    bad = "9,2024-01-01T03:00:00Z,-1,a"
    settings = project([*GOOD, bad])
    datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    settings = project([*GOOD, bad, "7,2024-01-01T00:30:00Z,7,a"])
    as_of = _at("2024-01-04T00:00:00Z")
    late = datasets.ingest(settings, "orders", as_of)
    assert (late.rows, late.quarantined) == (1, 0)  # the bad row is settled, too
    assert 7 not in datasets.read(settings, "orders", as_of - 1).column("id").to_pylist()
    row = datasets.read(settings, "orders", as_of).to_pylist()[-1]
    assert (row["id"], row["known_at"].isoformat()) == (7, "2024-01-04T00:00:00")
    assert datasets.ingest(settings, "orders", _at("2024-01-05T00:00:00Z")).rows == 0


def test_a_row_whose_time_cannot_be_read_is_quarantined_once(project: Callable[..., Settings]) -> None:
    settings = project([*GOOD, "5,,1,a"])
    assert datasets.ingest(settings, "orders", _at("2024-01-02T00:00:00Z")).quarantined == 1
    assert datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z")).quarantined == 0
    assert list(_quarantined(settings)) == [5]


def test_a_batch_with_too_many_bad_rows_is_refused_and_nothing_is_published(project: Callable[..., Settings]) -> None:
    settings = project([*GOOD, "5,2024-01-01T03:00:00Z,-1,a"], stop={"quarantined_share": 0.1, "min_rows": 0})
    with pytest.raises(DataError, match=r"1 of 5 \(20\.0%\): 1 x amount is below 0 or above 1000") as raised:
        datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    assert "Nothing was published" in str(raised.value)
    assert not DeltaLake(settings.lake).exists("datasets/orders")
    assert not raised.value.retryable


def test_a_batch_with_too_few_rows_is_refused(project: Callable[..., Settings]) -> None:
    settings = project(GOOD, stop={"quarantined_share": 0.5, "min_rows": 10})
    with pytest.raises(DataError, match=r"too few new rows; got 4; expected at least 10"):
        datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))


def test_a_check_of_the_whole_batch_refuses_it(project: Callable[..., Settings]) -> None:
    settings = project(GOOD, checks=[{"expect": "column_mean_to_be_between", "column": "amount", "max_value": 5}])
    with pytest.raises(DataError, match=r"column_mean_to_be_between\(column=amount, max_value=5\): 25"):
        datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))


def test_an_unknown_expectation_is_told_with_the_nearest(project: Callable[..., Settings]) -> None:
    settings = project(GOOD, checks=[{"expect": "column_values_to_be_in_sett", "column": "shop", "value_set": ["a"]}])
    with pytest.raises(SpecError, match=r"Did you mean 'column_values_to_be_in_set'\?"):
        datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))


def test_a_csv_without_a_column_is_refused_by_name(project: Callable[..., Settings]) -> None:
    settings = project(["1,2024-01-01T00:00:00Z,a"], header="id,at,shop")
    with pytest.raises(DataError, match=r"orders\.csv lacks column amount"):
        datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))


def test_a_missing_file_and_a_torn_one_are_told(project: Callable[..., Settings]) -> None:
    settings = project()
    with pytest.raises(DataError, match="source file"):
        datasets.stage(settings, "orders", _at("2024-01-03T00:00:00Z"))
    settings = project(source={"kind": "file", "path": "data/orders.parquet", "format": "parquet"})
    (settings.include_dir / "data" / "orders.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match="cannot be read"):
        datasets.stage(settings, "orders", _at("2024-01-03T00:00:00Z"))


def test_parquet_is_read_like_csv(project: Callable[..., Settings]) -> None:
    settings = project(source={"kind": "file", "path": "data/orders.parquet", "format": "parquet"})
    rows = pa.table(
        {
            "id": pa.array([1, 2], pa.int32()),
            "at": pa.array([_at("2024-01-01T00:00:00Z"), _at("2024-01-01T01:00:00Z")], pa.timestamp("us")),
            "amount": [1.0, 2.0],
            "shop": ["a", None],
            "more": ["ignored", "ignored"],
        }
    )
    pq.write_table(rows, settings.include_dir / "data" / "orders.parquet")
    assert datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z")).rows == 2
    read = datasets.read(settings, "orders", _at("2024-01-03T00:00:00Z"))
    assert read.column_names == ["id", "at", "amount", "shop", "known_at", "day"]
    assert read.schema.field("id").type == pa.int64()


def test_personal_columns_are_kept_as_a_keyed_hash_only(project: Callable[..., Settings]) -> None:
    columns = {**SPEC["columns"], "shop": {"type": "string", "nullable": True, "pii": True}}
    settings = project([*GOOD, "5,2024-01-01T03:00:00Z,bad,a"], columns=columns, checks=[])
    with pytest.raises(DataError, match="SLIPWAY_PII_KEY"):
        datasets.stage(settings, "orders", _at("2024-01-03T00:00:00Z"))
    keyed = settings.model_copy(update={"pii_key": type(settings.pii_key)("secret")})
    datasets.ingest(keyed, "orders", _at("2024-01-03T00:00:00Z"))
    shops = dict(zip(*DeltaLake(keyed.lake).read("datasets/orders", ["id", "shop"]).to_pydict().values(), strict=True))
    assert shops[1] == shops[4] != shops[2]
    assert shops[3] is None
    assert len(shops[1]) == 32
    row = DeltaLake(keyed.lake).read("quarantine/orders").column("row").to_pylist()[0]
    assert shops[1] in row
    assert '"a"' not in row


def test_reading_what_was_never_published_is_told(project: Callable[..., Settings]) -> None:
    with pytest.raises(NotFoundError, match="datasets/orders"):
        datasets.read(project(GOOD), "orders", 0)


def test_the_one_wrong_wind_speed_of_2013_is_quarantined(sample_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").symlink_to(sample_cache / "cache")
    settings = Settings(home=tmp_path, clock="replay")
    published = datasets.ingest(settings, "weather", _at("2014-01-02T00:00:00Z"))
    assert (published.rows, published.quarantined) == (26_114, 1)
    row = DeltaLake(settings.lake).read("quarantine/weather").to_pylist()[0]
    assert json.loads(row["row"])["wind_speed"] == pytest.approx(1048.36058)
    assert row["reason"] == "wind_speed is below 0 or above 200"


def test_a_new_column_enters_only_a_dataset_that_declares_it(project: Callable[..., Settings]) -> None:
    datasets.ingest(project(GOOD), "orders", _at("2024-01-01T12:00:00Z"))
    columns = {**SPEC["columns"], "note": {"type": "string", "nullable": True}}
    wider = [f"{row},n{number}" for number, row in enumerate(GOOD)]
    header = "id,at,amount,shop,note"
    with pytest.raises(DataError, match="evolve: add_columns"):
        datasets.ingest(project(wider, header, columns=columns), "orders", _at("2024-01-03T00:00:00Z"))
    settings = project(wider, header, columns=columns, evolve="add_columns")
    datasets.ingest(settings, "orders", _at("2024-01-03T00:00:00Z"))
    rows = DeltaLake(settings.lake).read("datasets/orders", ["id", "note"]).to_pylist()
    assert {row["id"]: row["note"] for row in rows} == {1: None, 2: None, 3: None, 4: "n3"}
