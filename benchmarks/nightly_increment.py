"""What one more day costs a feature view, beside making the whole year again: rows read, and processor time.

    .venv/bin/python benchmarks/nightly_increment.py [--times 1 10] [--home DIR] [--out FILE]

The sample's year is taken up to its last day but one, and every view is published. Then the last day arrives: the jobs
of the view's DAG (amend, build, check, publish, materialise) make it readable. Beside it the same jobs make the whole
year from nothing, in another home over the same datasets. Processor time is that of this process with everything
imported; rows are the dataset rows within the span that a build binds.

--times: how many copies of the sample the datasets hold, each with airports, carriers, aircraft and flights of its own.
The sample's day is nearly nothing, so what one copy shows is what any night costs, however little has happened.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.provenance import provenance, record
from pipelines.adapters.delta_lake import connect, open_lake
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--home", type=Path, default=Path("var/nightly_increment"))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    made_by, runs = provenance(), []
    for times in chosen.times:
        shutil.rmtree(chosen.home, ignore_errors=True)
        runs.append(measured(chosen.home, times))
        show(runs[-1])
    shutil.rmtree(chosen.home)
    if chosen.out:
        record(chosen.out, made_by | {"benchmark": "nightly_increment", "runs": runs})


def show(run: dict[str, Any]) -> None:
    print(f"{run['times']} times the sample: {run['dataset_rows']:,} dataset rows")
    head = ("rows of the year", "rows of the day", "share", "year, s", "day, s", "share")
    print(f"{'view':24}" + "".join(f"{name:>18}" for name in head))
    for name, one in [*run["views"].items(), ("all", run["all"])]:
        rows, cpu = one["rows"], one["cpu_s"]
        print(
            f"{name:24}{rows['full']:>18,}{rows['day']:>18,}{rows['day'] / rows['full']:>18.1%}"
            f"{cpu['full']:>18.2f}{cpu['day']:>18.2f}{cpu['day'] / cpu['full']:>18.1%}",
            flush=True,
        )


def measured(home: Path, times: int) -> dict[str, Any]:
    """Rows and processor seconds of the last day and of the whole year, by view and of all."""
    sample, nightly, full = (Settings(home=home / part, clock="replay") for part in ("sample", "nightly", "full"))
    include = nightly.include_dir
    for as_of_us in (WARM, EVE):  # the first night imports everything, and makes the year
        _arrive(sample, nightly, as_of_us, times)
        for view in names(include, "features"):
            _night(nightly, view, as_of_us)
    _arrive(sample, nightly, DAY, times)
    full.lake.mkdir(parents=True)
    (full.lake / "datasets").symlink_to((nightly.lake / "datasets").resolve())
    found: dict[str, Any] = {}
    for view in names(include, "features"):
        spec = load_view(include, view)
        built_us = features.built_through(nightly, spec.feast_name(include))
        rows = {"day": _rows(nightly, view, Span(built_us, DAY)), "full": _rows(nightly, view, Span(None, DAY))}
        cpu = {"day": _night(nightly, view, DAY), "full": _night(full, view, DAY)}
        found[view] = {"rows": rows, "cpu_s": cpu}
    total = {
        of: {part: sum(one[of][part] for one in found.values()) for part in ("day", "full")} for of in ("rows", "cpu_s")
    }
    lake = open_lake(nightly)
    count = sum(lake.read(datasets.table_of(name), ["day"]).num_rows for name in names(include, "datasets"))
    return {"times": times, "dataset_rows": count, "views": found, "all": total}


def _arrive(sample: Settings, into: Settings, as_of_us: int, times: int) -> None:
    """What the sample has up to a time, so many times over, as one publication of each dataset."""
    for name in names(sample.include_dir, "datasets"):
        after_us = datasets.published_through(sample, name)
        datasets.ingest(sample, name, as_of_us)
        table, after = datasets.table_of(name), f"known_at > make_timestamptz({after_us})" if after_us else None
        rows = open_lake(sample).read(table, where=after)
        copies = pa.concat_tables(_renamed(rows, number) for number in range(times))
        open_lake(into).append(table, copies, partition_by=["day"], txn=(datasets.INGEST, as_of_us))


def _renamed(rows: pa.Table, number: int) -> pa.Table:
    """A copy whose text and flight ids are its own."""
    if number == 0:
        return rows
    for at, field in enumerate(rows.schema):
        if pa.types.is_string(field.type):
            rows = rows.set_column(at, field, pc.binary_join_element_wise(rows.column(at), str(number), "~"))
        elif field.name == "flight_id":
            rows = rows.set_column(at, field, pc.add(rows.column(at), number * 10_000_000))
    return rows


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
