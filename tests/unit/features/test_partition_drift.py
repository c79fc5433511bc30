"""A new day that does not look like the days before is reported or refused, and the reason is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import open_online
from pipelines.contracts.clocks import parse_event_time
from pipelines.contracts.errors import DataError
from pipelines.features import partition_drift
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_view
from pipelines.spec.view import PartitionDrift
from pipelines.wiring import features, view_checks

DAY_US = 86_400_000_000
HOUR_US = DAY_US // 24
PLANE = load_view(PROJECT / "include", "plane")


def _rows(first: int, last: int, seats: float, hours: range = range(24), a_time: int = 20) -> pa.Table:
    """Rows of days `first` to `last` after 2013: seats around a level that is higher at night."""
    draw = np.random.default_rng(first)
    stamps = [day * DAY_US + hour * HOUR_US for day in range(first, last) for hour in hours for _ in range(a_time)]
    night = np.asarray([40.0 if stamp // HOUR_US % 24 < 6 else 0.0 for stamp in stamps])
    at = pa.array(stamps, pa.int64())
    columns = {name: pa.array(draw.normal(seats, 10, len(stamps)) + night) for name in PLANE.features}
    return pa.table(
        {"day": at.cast(pa.timestamp("us")).cast(pa.date32()), "event_timestamp": at.cast(pa.timestamp("us", "UTC"))}
        | columns
    )


def _judged(new: pa.Table, **bounds: float) -> list[partition_drift.Shift]:
    spec = PLANE.model_copy(update={"drift": PartitionDrift(features=["seats"], **bounds)})
    return partition_drift.shifts(spec, _rows(0, 20, 100.0), new)


def test_a_day_like_the_days_before_passes_and_a_shifted_one_is_named_with_its_measure() -> None:
    assert _judged(_rows(20, 21, 100.0), psi=0.25, mean_shift=8) == []
    by_psi, by_mean = _judged(_rows(20, 21, 120.0), psi=0.25, mean_shift=8)
    assert (by_psi.measure, by_mean.measure, by_psi.day) == ("psi", "mean_shift", "1970-01-21")
    assert "seats on 1970-01-21: psi" in by_psi.sentence
    assert "against the 20 days before (480 rows), 0.25 allowed" in by_psi.sentence


def test_a_part_of_a_day_is_held_against_the_same_hours() -> None:
    nights = _rows(20, 21, 100.0, hours=range(6))
    assert _judged(nights, psi=0.25, mean_shift=8) == []
    assert _judged(_rows(20, 21, 140.0, hours=range(12, 18)), psi=0.25) != []


def test_too_few_rows_or_days_are_not_judged() -> None:
    assert _judged(_rows(20, 21, 500.0, hours=range(2)), psi=0.1, min_rows=100) == []
    spec = PLANE.model_copy(update={"drift": PartitionDrift(psi=0.1)})
    assert partition_drift.shifts(spec, _rows(0, 4, 100.0), _rows(4, 5, 500.0)) == []
    assert partition_drift.shifts(PLANE, _rows(0, 20, 100.0), _rows(20, 21, 500.0)) == []


@pytest.mark.parametrize("action", ["block", "report"])
def test_a_drifted_day_reaches_nobody_when_it_is_to_be_blocked(
    tmp_path: Path, sample_lake: Settings, action: str
) -> None:
    include = tmp_path / "include"
    shutil.copytree(PROJECT / "include", include, ignore=shutil.ignore_patterns("__pycache__"))
    spec = include / "features" / "weather_at_origin.yaml"
    drift = f"drift: {{mean_shift: 0.1, min_rows: 20, features: [temp], action: {action}}}\nfreshness:"
    text = spec.read_text()
    assert "drift:" not in text
    spec.write_text(text.replace("freshness:", drift))
    (tmp_path / "home" / "lake").mkdir(parents=True)
    (tmp_path / "home" / "lake" / "datasets").symlink_to(sample_lake.lake / "datasets")
    settings = Settings(home=tmp_path / "home", clock="replay", include_dir=include)
    first = features.refresh(settings, "weather_at_origin", parse_event_time("2013-01-18T00:00:00Z"))
    lake, table = DeltaLake(settings.lake), features.table_of(first.version)
    before = lake.version(table)
    ref = features.build(settings, "weather_at_origin", parse_event_time("2013-01-20T00:00:00Z"))
    if action == "report":
        assert features.check(settings, ref) > 0
    else:
        with pytest.raises(DataError, match=r"a new day has drifted.*temp on 2013-01-\d\d: mean_shift"):
            features.check(settings, ref)
        assert lake.version(table) == before
        with open_online(settings) as online:
            assert online.through_us(first.version) == first.through_us
    (found,) = view_checks.kept(settings, "weather_at_origin")
    assert (found.refused, found.version, found.failing) == (action == "block", first.version, 0)
    assert "temp on" in found.reasons[0]
    assert Path(found.path).exists() if action == "block" else found.path == ""
