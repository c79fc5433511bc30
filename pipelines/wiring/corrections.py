"""Jobs that make published rows of a view anew: days that late or corrected facts touch, and days that a person names.

The days' partitions are replaced by one commit, which also says from which versions of the datasets the view is made
now. Until then everything stays as it was, and doing it again does nothing; rows whose values stay keep their
`created_timestamp`, so that readers and the online store see what has really changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.adapters.delta_lake import DeltaLake, connect, open_lake
from pipelines.contracts.errors import DataError, NotFoundError
from pipelines.features import touched
from pipelines.features.engine import Span, available_at_sql
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets, features, view_checks

CHUNK_DAYS = 31
"""Days that one task of a backfill makes anew."""


class Amended(msgspec.Struct, frozen=True, kw_only=True):
    """What was made anew: days looked at, and rows whose values changed, appeared or went."""

    view: str
    version: str
    days: int
    changed: int


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """Days that one task makes anew, both inclusive, ISO dates."""

    view: str
    first: str
    last: str


def amend(settings: Settings, view: str, as_of_us: int) -> Amended:
    """Make anew the published days that facts have touched which arrived, changed or went since they were made.

    Nothing for a view that was never published, or that streams: its stream corrects itself. Raises DataError when the
    new rows fail the view's checks.
    """
    spec = load_view(settings.include_dir, view)
    version = spec.feast_name(settings.include_dir)
    through_us = features.built_through(settings, version)
    if through_us is None or spec.stream is not None:
        return Amended(view=view, version=version, days=0, changed=0)
    lake, table = open_lake(settings), features.table_of(version)
    now = features.dataset_versions(settings, spec)
    before = {name: lake.applied(table, features.read_mark(name)) for name in spec.datasets}
    moved = {name: number for name, number in now.items() if number != before[name]}
    days: set[date] = set()
    for name in moved:
        readable = _changed_days(lake, spec, name, before[name], now[name], through_us)
        days |= touched.days_after(spec, name, readable, through_us)
    marks = {features.read_mark(name): number for name, number in moved.items()}
    return _rebuild(settings, spec, days, through_us, as_of_us, marks)


def plan_backfill(settings: Settings, view: str, first: str = "", last: str = "") -> list[Chunk]:
    """The days from `first` to `last` (ISO dates) in parts, one a task; none when both are empty. Raises SpecError."""
    load_view(settings.include_dir, view)
    days = touched.range_of(first, last)
    parts = [days[at : at + CHUNK_DAYS] for at in range(0, len(days), CHUNK_DAYS)]
    return [Chunk(view=view, first=part[0].isoformat(), last=part[-1].isoformat()) for part in parts]


def backfill(settings: Settings, view: str, first: str, last: str, as_of_us: int) -> Amended:
    """Make the view's rows of these days anew, as far as it is published; days before are added.

    Nothing for a view that was never published: its first build makes everything. Raises as `amend`.
    """
    spec = load_view(settings.include_dir, view)
    version = spec.feast_name(settings.include_dir)
    through_us = features.built_through(settings, version)
    if through_us is None:
        return Amended(view=view, version=version, days=0, changed=0)
    return _rebuild(settings, spec, set(touched.range_of(first, last)), through_us, as_of_us, {})


def _rebuild(
    settings: Settings, spec: ViewSpec, days: Iterable[date], through_us: int, as_of_us: int, marks: dict[str, int]
) -> Amended:
    lake, version = open_lake(settings), spec.feast_name(settings.include_dir)
    table = features.table_of(version)
    spans = touched.spans(days, through_us)
    listed = [day for span in spans for day in _days_of(span)]
    changed = 0
    if spans:
        made = pa.concat_tables(features.compute(settings, spec, span, created_us=0) for span in spans)
        where = f"day IN ({', '.join(repr(day.isoformat()) for day in listed)})"
        there = lake.read(table, where=where)
        rows, changed, created_us = _merged(spec, there, made, max(as_of_us, through_us))
        if changed:
            _check(settings, spec, version, rows, as_of_us)
            lake.replace(table, rows, ["day"], where, marks=marks | {features.CORRECTED: created_us})
            marks = {}
    if marks:
        lake.mark(table, marks)
    return Amended(view=spec.name, version=version, days=len(listed), changed=changed)


def _days_of(span: Span) -> Iterator[date]:
    assert span.after_us is not None
    return touched.between(touched.day_of(span.after_us + 1), touched.day_of(span.until_us))


def _merged(spec: ViewSpec, there: pa.Table, made: pa.Table, as_of_us: int) -> tuple[pa.Table, int, int]:
    """The rows as they shall be, how many differ from those that are there, and when the changed ones are created.

    A changed row is created a second after what is there at least: online stores keep whole seconds, and let only a
    newer row of the same time replace one.
    """
    keys = [*spec.entity.keys, "event_timestamp"]
    same_key = " AND ".join(f'm."{name}" = t."{name}"' for name in keys)
    same = " AND ".join(f'm."{name}" IS NOT DISTINCT FROM t."{name}"' for name in spec.features)
    with connect() as connection:
        connection.register("there", there)
        connection.register("made", made.select(there.column_names))
        newest = _one(connection, "SELECT coalesce(max(epoch_us(created_timestamp)), 0) FROM there")
        created_us = max(as_of_us, newest) + 1_000_000
        query = f"""SELECT m.* REPLACE (CASE WHEN t.day IS NOT NULL AND {same} THEN t.created_timestamp
                    ELSE make_timestamptz({created_us}) END AS created_timestamp)
                    FROM made m LEFT JOIN there t ON {same_key} ORDER BY m.event_timestamp"""
        rows = connection.execute(query).fetch_arrow_table()
        connection.register("rows", rows)
        fresh = _one(connection, f"SELECT count(*) FROM rows WHERE epoch_us(created_timestamp) = {created_us}")
        gone = _one(connection, f"SELECT count(*) FROM there t ANTI JOIN made m ON {same_key}")
    return rows, fresh + gone, created_us


def _one(connection: Any, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _check(settings: Settings, spec: ViewSpec, version: str, rows: pa.Table, as_of_us: int) -> None:
    """Hold the rows against the view's checks; they stay in the stage folder when they fail."""
    path = settings.root / "stage" / version / "amended.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, compression="zstd")
    view_checks.check(settings, spec, version, rows, str(path), as_of_us)
    path.unlink()


def _files(lake: DeltaLake, table: str, version: int | None) -> dict[str, frozenset[str]]:
    """The files of a version by day; none when the table's log no longer tells of it."""
    try:
        return lake.partition_files(table, version) if version is not None else {}
    except NotFoundError:
        return {}


def _changed_days(
    lake: DeltaLake, spec: ViewSpec, dataset: str, before: int | None, now: int, through_us: int
) -> Sequence[date]:
    """The days on which rows became readable that two versions of a dataset do not share, up to `through_us`.

    Only partitions whose files differ are read. Without the older version (never noted, or its files are gone) every
    row of those is taken for changed.
    """
    table = datasets.table_of(dataset)
    old, new = _files(lake, table, before), lake.partition_files(table, now)
    last = touched.day_of(through_us)
    days = sorted(
        day for day in old.keys() | new.keys() if old.get(day) != new.get(day) and date.fromisoformat(day) <= last
    )
    if not days:
        return []
    stamp = available_at_sql(spec.publish_every.us, "CAST(known_at AS TIMESTAMP)")
    readable = f"SELECT DISTINCT CAST({stamp} AS DATE) FROM {{}} WHERE {stamp} <= make_timestamp({through_us})"
    with connect() as connection:
        connection.register("new_rows", lake.partitions(table, now, days))
        try:
            if before is None or not old:
                raise FileNotFoundError
            connection.register("old_rows", lake.partitions(table, before, days))
            differing = (
                "((SELECT * FROM new_rows EXCEPT ALL SELECT * FROM old_rows) UNION ALL "
                "(SELECT * FROM old_rows EXCEPT ALL SELECT * FROM new_rows))"
            )
            found = connection.execute(readable.format(differing)).fetchall()
        except (OSError, DataError):
            found = connection.execute(readable.format("new_rows")).fetchall()
    return sorted(row[0] for row in found)
