"""A training set holds what was known, says what it left out, and never changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import ContractError, DataError, NotFoundError
from pipelines.training.training_set import Joined, Manifest, join_labels, read, write

START = datetime(2013, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def _day(number: float) -> datetime:
    return START + timedelta(days=number)


def _requests(days: list[float]) -> pa.Table:
    times = pa.array([_day(day) for day in days], STAMP)
    return pa.table(
        {"request_id": [f"r{day}" for day in days], "event_timestamp": times, "x": [float(d) for d in days]}
    )


def _labels(rows: list[tuple[float, float | None, float]]) -> pa.Table:
    return pa.table(
        {
            "request_id": [f"r{day}" for day, _, _ in rows],
            "label": pa.array([label for _, label, _ in rows], pa.float64()),
            "label_timestamp": pa.array([_day(known) for _, _, known in rows], STAMP),
        }
    )


def _join(requests: pa.Table, labels: pa.Table, as_of: float, **changed: Any) -> Joined:
    given: dict[str, Any] = {"from_us_": None, "maturity_us": to_us(_day(1)) - to_us(START), "unlabelled": "drop"}
    return join_labels(requests, labels, as_of_us=to_us(_day(as_of)), **(given | changed))


def _manifest(joined: Joined) -> Manifest:
    return Manifest(
        model="m",
        spec_digest="s",
        as_of_us=1,
        from_us=None,
        views=[],
        rows=joined.table.num_rows,
        labelled=joined.table.num_rows,
        censored=0,
        dropped=joined.dropped,
        first_event_us=0,
        last_event_us=0,
        last_label_us=0,
        data="",
    )


def test_a_label_from_the_future_is_not_known() -> None:
    labels = _labels([(1, 1.0, 2), (2, 0.0, 9), (4.5, 1.0, 9)])
    joined = _join(_requests([1, 2, 4.5, 7]), labels, 5)
    assert joined.table["request_id"].to_pylist() == ["r1"]
    assert joined.dropped == {"label_not_known_yet": 1, "unlabelled": 1}


def test_the_last_label_known_by_then_counts() -> None:
    joined = _join(_requests([1]), _labels([(1, 1.0, 2), (1, 0.0, 3), (1, 1.0, 9)]), 5)
    assert joined.table["label"].to_pylist() == [0.0]


def test_censored_requests_stay_without_a_label() -> None:
    joined = _join(_requests([1, 2, 4.5]), _labels([(1, 1.0, 2)]), 5, unlabelled="censor")
    assert joined.table["label"].to_pylist() == [1.0, None]
    assert joined.dropped == {"label_not_known_yet": 1, "unlabelled": 0}


def test_a_window_leaves_out_what_is_older() -> None:
    labels = _labels([(1, 1.0, 2), (3, 0.0, 4)])
    joined = _join(_requests([1, 3]), labels, 5, from_us_=to_us(_day(2)))
    assert joined.table["request_id"].to_pylist() == ["r3"]


def test_a_label_that_is_not_a_number_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="NaN for 1 requests, first r1"):
        _join(_requests([1]), _labels([(1, float("nan"), 2)]), 5)


def test_a_request_that_comes_twice_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="r1 twice"):
        _join(_requests([1, 1]), _labels([(1, 1.0, 2)]), 5)


def test_nothing_labelled_is_an_error_that_says_until_when() -> None:
    with pytest.raises(DataError, match="no labelled request up to 2013-01-06"):
        _join(_requests([1]), _labels([(1, None, 2)]), 5)


def test_the_same_rows_are_the_same_set_and_are_written_once(tmp_path: Path) -> None:
    joined = _join(_requests([1, 2]), _labels([(1, 1.0, 2), (2, 0.0, 3)]), 5)
    first = write(tmp_path, joined.table, _manifest(joined))
    made = (tmp_path / first / "data.parquet").stat().st_mtime_ns
    assert write(tmp_path, joined.table, _manifest(joined)) == first
    assert (tmp_path / first / "data.parquet").stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [first]
    assert read(tmp_path, first)[0].equals(joined.table)


def test_other_rows_are_another_set(tmp_path: Path) -> None:
    labels = _labels([(1, 1.0, 2), (2, 0.0, 3)])
    one, other = _join(_requests([1, 2]), labels, 5), _join(_requests([1]), labels, 5)
    assert write(tmp_path, one.table, _manifest(one)) != write(tmp_path, other.table, _manifest(one))


@pytest.mark.parametrize("name", ["data.parquet", "manifest.json"])
def test_a_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    joined = _join(_requests([1]), _labels([(1, 1.0, 2)]), 5)
    digest = write(tmp_path, joined.table, _manifest(joined))
    path = tmp_path / digest / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ContractError, match=name):
        read(tmp_path, digest)


def test_an_unknown_set_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read(tmp_path, "0" * 64)
