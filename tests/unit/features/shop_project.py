"""A project of one dataset and one view with a window of two days, whose facts are put into the lake as they are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.clocks import to_us
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import corrections, datasets, features
from tests.unit.training.project import SALES, SHOP, SHOP_PY

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
Fact = tuple[int, float]
"""Hours after START at which it was known, and its value."""


class Shop:
    """One dataset and one view whose window is two days long; facts are put into the lake as they are."""

    def __init__(self, home: Path) -> None:
        include = home / "include"
        for name, text in {
            "datasets/sales.yaml": SALES,
            "features/shop.yaml": SHOP.replace("look_back: 7d", "look_back: 2d").replace(
                "buyers: {type: float64}", "buyers: {type: float64, min: 0, max: 100}"
            ),
            "transforms/shop.py": SHOP_PY.replace("hours=167", "hours=47"),
        }.items():
            (include / name).parent.mkdir(parents=True, exist_ok=True)
            (include / name).write_text(text)
        self.settings = Settings(home=home / "home", include_dir=include, clock="replay")
        self.lake = DeltaLake(self.settings.lake)
        self.spec = load_view(include, "shop")
        self.version = self.spec.feast_name(include)
        self._n = 0

    def tell(self, facts: Sequence[Fact], complete: int) -> None:
        """Append facts, whatever the time they were known at, and say how far the dataset is complete."""
        times = [START + hours * HOUR for hours, _ in facts]
        rows = pa.table(
            {
                "visit": [f"{self._n}.{n}" for n in range(len(facts))],
                "shop": [f"s{n % 2}" for n in range(len(facts))],
                "told": pa.array(times, pa.timestamp("us", "UTC")),
                "bought": pa.array([value for _, value in facts], pa.float64()),
                "known_at": pa.array(times, pa.timestamp("us", "UTC")),
                "day": pa.array([time.date() for time in times], pa.date32()),
            }
        )
        self._n += 1
        table = datasets.table_of("sales")
        self.lake.advance(table, datasets.INGEST, self.at(complete), lambda _: rows, partition_by=["day"])

    def correct(self, day: int, value: float) -> None:
        """Replace a day of facts by others of the same times."""
        table, where = datasets.table_of("sales"), f"day = '{(START + day * 24 * HOUR).date()}'"
        there = self.lake.read(table, where=where)
        new = pa.array([value] * there.num_rows, pa.float64())
        self.lake.replace(table, there.set_column(there.column_names.index("bought"), "bought", new), ["day"], where)

    def at(self, hours: int) -> int:
        return to_us(START + hours * HOUR)

    def run(self, hours: int) -> corrections.Amended:
        """What a run of the view's DAG does."""
        made = corrections.amend(self.settings, "shop", self.at(hours))
        ref = features.build(self.settings, "shop", self.at(hours))
        features.check(self.settings, ref)
        features.publish(self.settings, ref)
        return made

    def published(self) -> list[tuple[object, ...]]:
        return _rows(self.lake.read(features.table_of(self.version)))

    def recomputed(self) -> list[tuple[object, ...]]:
        """The view in one full computation of everything it is published for."""
        through_us = features.built_through(self.settings, self.version)
        assert through_us is not None
        return _rows(features.compute(self.settings, self.spec, Span(None, through_us), created_us=0))


def _rows(table: pa.Table) -> list[tuple[object, ...]]:
    return sorted((row["event_timestamp"], row["shop"], row["buyers"], row["day"]) for row in table.to_pylist())


def every_hour(first: int, last: int) -> list[Fact]:
    return [(hour, float(hour % 3)) for hour in range(first, last)]
