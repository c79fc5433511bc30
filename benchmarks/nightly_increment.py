"""What one more day costs a feature view, beside making the whole year again: rows read, and processor time.

    .venv/bin/python benchmarks/nightly_increment.py [--home DIR] [--out FILE]

The sample's year is taken up to its last day but one, and every view is published. Then the last day arrives: the jobs
of the view's DAG (amend, build, check, publish, materialise) make it readable. Beside it the same jobs make the whole
year from nothing, in another home over the same datasets. Processor time is that of this process with everything
imported; rows are the dataset rows within the span that a build binds.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance, record
from pipelines.adapters.delta_lake import connect
from pipelines.contracts.clocks import parse_event_time
from pipelines.features import engine
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view, names
from pipelines.wiring import corrections, datasets, features

EVE = parse_event_time("2013-12-30T00:00:00Z")
DAY = parse_event_time("2013-12-31T00:00:00Z")
WARM = parse_event_time("2013-12-29T00:00:00Z")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("var/nightly_increment"))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    shutil.rmtree(chosen.home, ignore_errors=True)
    made_by, result = provenance(), measured(chosen.home)
    head = ("rows of the year", "rows of the day", "share", "year, s", "day, s", "share")
    print(f"{'view':24}" + "".join(f"{name:>18}" for name in head))
    for name, one in result["views"].items():
        rows, cpu = one["rows"], one["cpu_s"]
        print(
            f"{name:24}{rows['full']:>18,}{rows['day']:>18,}{rows['day'] / rows['full']:>18.1%}"
            f"{cpu['full']:>18.2f}{cpu['day']:>18.2f}{cpu['day'] / cpu['full']:>18.1%}"
        )
    if chosen.out:
        record(chosen.out, made_by | result)


def measured(home: Path) -> dict[str, Any]:
    """Rows and processor seconds of the last day and of the whole year, by view."""
    nightly, full = (Settings(home=home / part, clock="replay") for part in ("nightly", "full"))
    include = nightly.include_dir
    for as_of_us in (WARM, EVE):  # the first night imports everything, and makes the year
        for name in names(include, "datasets"):
            datasets.ingest(nightly, name, as_of_us)
        for view in names(include, "features"):
            _night(nightly, view, as_of_us)
    for name in names(include, "datasets"):
        datasets.ingest(nightly, name, DAY)
    full.lake.mkdir(parents=True)
    (full.lake / "datasets").symlink_to((nightly.lake / "datasets").resolve())
    found = {}
    for view in names(include, "features"):
        spec = load_view(include, view)
        built_us = features.built_through(nightly, spec.feast_name(include))
        rows = {"day": _rows(nightly, view, Span(built_us, DAY)), "full": _rows(nightly, view, Span(None, DAY))}
        found[view] = {"rows": rows, "cpu_s": {"day": _night(nightly, view, DAY), "full": _night(full, view, DAY)}}
    return {"benchmark": "nightly_increment", "views": found}


def _night(settings: Settings, view: str, as_of_us: int) -> float:
    """The jobs of a view's DAG; processor seconds."""
    begun = time.process_time()
    corrections.amend(settings, view, as_of_us)
    ref = features.build(settings, view, as_of_us)
    features.check(settings, ref)
    features.publish(settings, ref)
    features.materialise(settings, view, as_of_us)
    return time.process_time() - begun


def _rows(settings: Settings, view: str, span: Span) -> int:
    """How many rows of its datasets a build of this span is made of."""
    spec, total = load_view(settings.include_dir, view), 0
    with connect() as connection:
        for name in spec.datasets:
            after_us, known_us = engine.known_span_us(spec, name, span)
            datasets.bind(settings, connection, name, known_us, after_us)
            total += int((connection.execute(f'SELECT count(*) FROM "{name}"').fetchone() or (0,))[0])
    return total


if __name__ == "__main__":
    main()
