"""Whether a new day of a view looks like the days before it, before anybody reads it.

A day is held against the last days at the same hours: a view that is published every hour brings a part of a day, and
nights differ from noons more than days from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.monitoring import psi
from pipelines.spec.fields import NUMERIC
from pipelines.spec.view import PartitionDrift, ViewSpec

_LEAST_DAYS = 5
_HOUR_US, _DAY_US = 3_600_000_000, 86_400_000_000
_Vector = np.ndarray[Any, Any]


class Shift(msgspec.Struct, frozen=True, kw_only=True):
    """One feature of one day that left its bound. `measure`: `psi` or `mean_shift`."""

    feature: str
    day: str
    measure: str
    value: float
    bound: float
    rows: int
    days_before: int

    @property
    def sentence(self) -> str:
        return (
            f"{self.feature} on {self.day}: {self.measure} {self.value:.2f} against the {self.days_before} days before "
            f"({self.rows} rows), {self.bound:g} allowed"
        )


def shifts(spec: ViewSpec, before: pa.Table, new: pa.Table) -> list[Shift]:
    """What of the new rows leaves the bounds of `spec.drift`, day by day, against `before` and the new days before.

    Both tables have `day`, `event_timestamp` and the features. Empty without a `drift`, or with fewer than five days.
    """
    bounds = spec.drift
    if bounds is None:
        return []
    columns = ["day", "event_timestamp", *_watched(spec, bounds)]
    rows = pa.concat_tables([before.select(columns), new.select(columns)], promote_options="permissive")
    days = rows.column("day").to_numpy().astype("datetime64[D]")
    hours = rows.column("event_timestamp").cast(pa.int64()).to_numpy() % _DAY_US // _HOUR_US
    is_new = np.arange(rows.num_rows) >= before.num_rows
    found: list[Shift] = []
    for day in np.unique(days[is_new]):
        judged = is_new & (days == day)
        earlier = (days < day) & (days >= day - np.timedelta64(bounds.partitions, "D"))
        earlier &= np.isin(hours, np.unique(hours[judged]))
        if judged.sum() < bounds.min_rows or np.unique(days[earlier]).size < _LEAST_DAYS:
            continue
        for name in _watched(spec, bounds):
            values = _numbers(rows.column(name))
            found += _of_feature(name, day, values[judged], values[earlier], days[earlier], bounds)
    return found


def _watched(spec: ViewSpec, bounds: PartitionDrift) -> list[str]:
    return list(bounds.features) or [name for name, one in spec.features.items() if one.type in NUMERIC]


def _numbers(column: pa.ChunkedArray) -> _Vector:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _of_feature(
    name: str, day: Any, new: _Vector, before: _Vector, days: _Vector, bounds: PartitionDrift
) -> Iterator[Shift]:
    measured = []
    if bounds.psi is not None:
        measured.append(("psi", psi.of_numbers(before, new), bounds.psi))
    if bounds.mean_shift is not None and not (np.isnan(new).all() or np.isnan(before).all()):
        means = np.asarray([np.nanmean(of) for one in np.unique(days) if (~np.isnan(of := before[days == one])).any()])
        spread = max(float(means.std()), 1e-12 * max(1.0, float(np.abs(means).max())))
        measured.append(("mean_shift", abs(float(np.nanmean(new)) - float(means.mean())) / spread, bounds.mean_shift))
    for measure, value, bound in measured:
        if value > bound:
            yield Shift(
                feature=name,
                day=str(day),
                measure=measure,
                value=float(value),
                bound=bound,
                rows=int(new.size),
                days_before=int(np.unique(days).size),
            )
