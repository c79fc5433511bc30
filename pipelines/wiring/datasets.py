"""Jobs of a dataset: take what is new, check it, set bad rows aside, publish the rest; and read it as of a time.

Every job may be repeated, and interrupted anywhere: a batch is named by its dataset and `as_of`, and enters the lake
by a Delta transaction numbered `as_of_us`, so a span of knowledge that is published is never published again.
"""

from __future__ import annotations

import json
import shutil

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.adapters.delta_lake import MICROS_UTC, connect, open_lake
from pipelines.contracts.canonical import file_digest
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import DataError, NotYetError
from pipelines.datasets import file_source, flights_sample
from pipelines.datasets.conform import conforming_sql, key_sql
from pipelines.datasets.quarantine import stop_if_unfit
from pipelines.datasets.sample_shift import Shift, fixed_shift
from pipelines.datasets.staging import OWN, RAW, REASONS, ROW, UNREADABLE, Published, StageRef
from pipelines.datasets.suite import dataset_suite
from pipelines.settings import Settings
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.loading import load_dataset
from pipelines.wiring.personal_rows import hashed, numbered, without_erased

INGEST = "ingest"
QUARANTINE = pa.schema(
    [
        ("row", pa.string()),
        ("reason", pa.string()),
        ("run", pa.string()),
        ("known_at", pa.timestamp("us", tz="UTC")),
    ]
)


_ADDED = frozenset({*OWN, "known_at", "day"})


def table_of(name: str) -> str:
    """The lake table of a dataset."""
    return f"datasets/{name}"


def published_through(settings: Settings, name: str) -> int | None:
    """The time of knowledge up to which a dataset is complete in the lake; None before its first publication."""
    return open_lake(settings).applied(table_of(name), INGEST)


def sample_shift(settings: Settings) -> Shift:
    """Where in time the sample lies for this installation; under the wall clock decided once and kept in its home."""
    if settings.clock == "replay":
        return Shift()
    return fixed_shift(settings.root / "sample_shift.json", settings.event_clock().event_now_us())


def stage(settings: Settings, name: str, as_of_us: int) -> StageRef:
    """Take the rows that became known after the last publication and until `as_of_us`, each value read as its type.

    Rows of a file that turn up later than their own time are taken as known at `as_of_us`.
    Raises DataError for a source that cannot be read or lacks a column.
    """
    spec = load_dataset(settings.include_dir, name)
    after_us = published_through(settings, name)
    folder = settings.root / "stage" / name / str(as_of_us)
    if spec.source.kind == "stream" or (after_us is not None and after_us >= as_of_us):
        # A stream's rows are checked and published one by one as they come.
        return StageRef(
            dataset=name, as_of_us=as_of_us, after_us=after_us, rows=0, folder=str(folder), digest="", empty=True
        )
    with connect() as connection:
        connection.execute("SET preserve_insertion_order=true")
        _bind_source(settings, connection, spec, after_us, as_of_us)
        settled = _bind_settled(settings, connection, spec) if after_us is not None else None
        query = conforming_sql(spec, "source", after_us, as_of_us, settled)
        rows = connection.execute(query).fetch_arrow_table()
    rows, erased = without_erased(settings, hashed(settings, spec, rows))
    rows = _without_seen(settings, name, rows)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "staged.parquet"
    pq.write_table(rows, path, compression="zstd")
    return StageRef(
        dataset=name,
        as_of_us=as_of_us,
        after_us=after_us,
        rows=rows.num_rows,
        folder=str(folder),
        digest=file_digest(path),
        erased=erased,
    )


def check(settings: Settings, ref: StageRef) -> int:
    """Hold every row against the spec's expectations; write down why rows are bad. Returns how many are.

    Raises DataError when the batch is refused as a whole: then nothing of it is published.
    """
    from pipelines.adapters import gx_checks

    if ref.empty:
        return 0
    spec = load_dataset(settings.include_dir, ref.dataset)
    rows = pq.read_table(ref.staged)
    findings = gx_checks.check(rows.drop_columns(list(OWN)), dataset_suite(spec))
    reasons = {number: list(found) for number, found in findings.rows.items()}
    for number, text in _unreadable(rows):
        # What cannot be read is null, and would also be told as missing.
        reasons[number] = [text, *(r for r in reasons.get(number, []) if not r.endswith(" is missing"))]
    for number in _known_keys(settings, spec, rows, ref.after_us):
        reasons.setdefault(number, []).append("its key is already published")
    stop_if_unfit(ref.dataset, spec.stop, rows.num_rows, reasons, findings.table, str(ref.staged))
    ordered = sorted(reasons)
    table = pa.table([ordered, ["; ".join(reasons[number]) for number in ordered]], schema=REASONS)
    pq.write_table(table, ref.reasons)
    return len(ordered)


def quarantine(settings: Settings, ref: StageRef) -> int:
    """Set the bad rows aside, with their reasons, into the lake's quarantine. Returns how many."""
    if ref.empty:
        return 0
    rows, reasons = pq.read_table(ref.staged), pq.read_table(ref.reasons)
    numbers = reasons.column(ROW)
    bad = pc.is_in(rows.column(ROW), value_set=numbers.combine_chunks())
    pq.write_table(rows.filter(pc.invert(bad)).drop_columns(list(OWN)), ref.good, compression="zstd")
    run = from_us(ref.as_of_us).isoformat()
    aside = [
        {
            "row": row[RAW] or json.dumps({k: v for k, v in row.items() if k not in _ADDED}, default=str),
            "reason": reason,
            "run": run,
            "known_at": row["known_at"],
        }
        for row, reason in zip(
            rows.filter(bad).sort_by(ROW).to_pylist(), reasons.column("reason").to_pylist(), strict=True
        )
    ]
    for erasure, count in sorted(ref.erased.items()):
        reason = f"{count} rows whose subject was erased ({erasure}); they are not kept"
        aside.append({"row": None, "reason": reason, "run": run, "known_at": from_us(ref.as_of_us)})
    if aside:
        open_lake(settings).append(
            f"quarantine/{ref.dataset}",
            pa.Table.from_pylist(aside, schema=QUARANTINE),
            txn=(INGEST, ref.as_of_us),
        )
    return int(reasons.num_rows)


def publish(settings: Settings, ref: StageRef) -> Published:
    """Append the good rows to the lake as one commit that also says how far the dataset is now complete.

    The batch's files are removed; publishing again is a no-op.
    """
    lake = open_lake(settings)
    table = table_of(ref.dataset)
    appended = None
    if not ref.empty:

        def missing(last_us: int | None) -> pa.Table:
            # Another run may have published a part of this span since it was staged.
            good, _ = without_erased(settings, _staged(ref))
            if last_us is None or last_us == ref.after_us:
                return good
            return good.filter(pc.greater(good.column("known_at"), pa.scalar(from_us(last_us), MICROS_UTC)))

        evolve = load_dataset(settings.include_dir, ref.dataset).evolve == "add_columns"
        appended = lake.advance(table, INGEST, ref.as_of_us, missing, partition_by=["day"], evolve=evolve)
    quarantined = 0 if appended is None else pq.read_metadata(ref.reasons).num_rows
    shutil.rmtree(ref.folder, ignore_errors=True)
    return Published(
        dataset=ref.dataset,
        as_of_us=ref.as_of_us,
        rows=appended or 0,
        quarantined=int(quarantined),
        version=lake.version(table) or 0,
        digest=ref.digest,
    )


def ingest(settings: Settings, name: str, as_of_us: int) -> Published:
    """Stage, check, quarantine and publish: everything that became known until `as_of_us`."""
    ref = stage(settings, name, as_of_us)
    check(settings, ref)
    quarantine(settings, ref)
    return publish(settings, ref)


def read(settings: Settings, name: str, as_of_us: int, after_us: int | None = None) -> pa.Table:
    """The rows of a dataset known by `as_of_us` (and after `after_us`), in the order they became known."""
    with connect() as connection:
        bind(settings, connection, name, as_of_us, after_us)
        return connection.execute(f'SELECT * FROM "{name}" ORDER BY known_at').fetch_arrow_table()


def bind(
    settings: Settings,
    connection: duckdb.DuckDBPyConnection,
    name: str,
    as_of_us: int,
    after_us: int | None = None,
    *,
    as_name: str | None = None,
) -> None:
    """Make a dataset readable as a view: rows known by `as_of_us` and, when given, after `after_us`.

    as_name: the view's name; the dataset's when it is not given. Times are naive UTC, as the transforms see them.
    Raises NotYetError for a dataset that was never published.
    """
    lake = open_lake(settings)
    if not lake.exists(table_of(name)):
        raise NotYetError(f"dataset {table_of(name)}", got="never published", hint=f"Run dataset.{name} first.")
    lake.bind(connection, f"lake {name}", table_of(name))
    where = f"known_at <= make_timestamptz({as_of_us}) AND day <= DATE '{from_us(as_of_us).date()}'"
    if after_us is not None:
        where += f" AND known_at > make_timestamptz({after_us}) AND day >= DATE '{from_us(after_us).date()}'"
    spec = load_dataset(settings.include_dir, name)
    there = set(lake.schema(table_of(name)).names)
    declared = (column for column, of in spec.columns.items() if of.type == "timestamp" and column in there)
    times = ["known_at", *declared]
    naive = ", ".join(f'CAST("{time}" AS TIMESTAMP) AS "{time}"' for time in times)
    connection.execute(
        f'CREATE OR REPLACE VIEW "{as_name or name}" AS SELECT * REPLACE ({naive}) FROM "lake {name}" WHERE {where}'
    )


def _staged(ref: StageRef) -> pa.Table:
    try:
        return pq.read_table(ref.good)
    except FileNotFoundError:
        hint = "Another run has cleared it away; stage again."
        raise DataError(f"dataset {ref.dataset}: staged batch", got=f"no {ref.good}", hint=hint) from None


def _bind_source(
    settings: Settings, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec, after_us: int | None, as_of_us: int
) -> None:
    if spec.source.kind == "file":
        file_source.bind(connection, settings.include_dir, spec, spec.source, "source")
    elif spec.source.kind == "flights_sample":
        cache = settings.root / "cache"
        shift, span = sample_shift(settings), (after_us, as_of_us)
        flights_sample.bind(connection, cache, spec.source.table, shift, span, "source", spec.source.december)


def _bind_settled(settings: Settings, connection: duckdb.DuckDBPyConnection, spec: DatasetSpec) -> str | None:
    """A relation of the keys that are published or in quarantine; None where no row can turn up late.

    The sample is complete. Where a key is personal the lake has its hash only, and late rows cannot be told.
    """
    if spec.source.kind != "file" or any(spec.columns[name].pii for name in spec.key):
        return None
    lake = open_lake(settings)
    lake.bind(connection, "published", table_of(spec.name))
    keys = [f"SELECT {key_sql(spec)} AS key FROM published"]
    if lake.exists(aside := f"quarantine/{spec.name}"):
        lake.bind(connection, "aside", aside)
        keys.append(f"SELECT {key_sql(spec, 'row')} AS key FROM aside")
    connection.execute(f"CREATE TEMP TABLE settled AS {' UNION '.join(keys)}")
    return "settled"


def _without_seen(settings: Settings, name: str, rows: pa.Table) -> pa.Table:
    """Rows without those whose time of knowledge cannot be read and that are in quarantine already."""
    lake = open_lake(settings)
    table = f"quarantine/{name}"
    if rows.column(RAW).null_count == rows.num_rows or not lake.exists(table):
        return rows
    seen = lake.read(table, ["row"]).column("row").combine_chunks()
    again = pc.fill_null(pc.is_in(rows.column(RAW), value_set=seen), False)
    return numbered(rows.filter(pc.invert(again)))


def _unreadable(rows: pa.Table) -> list[tuple[int, str]]:
    faulty = rows.filter(pc.is_valid(rows.column(UNREADABLE)))
    return list(zip(faulty.column(ROW).to_pylist(), faulty.column(UNREADABLE).to_pylist(), strict=True))


def _known_keys(settings: Settings, spec: DatasetSpec, rows: pa.Table, after_us: int | None) -> list[int]:
    """Numbers of the rows whose key was published before their span began (what another run publishes is no fault)."""
    if rows.num_rows == 0 or after_us is None:
        return []
    keys = ", ".join(f'"{key}"' for key in spec.key)
    with connect() as connection:
        open_lake(settings).bind(connection, "published", table_of(spec.name))
        connection.register("batch", rows.select([*spec.key, ROW]))
        before = f"SELECT {keys} FROM published WHERE known_at <= make_timestamptz({after_us})"
        query = f"SELECT {ROW} FROM batch SEMI JOIN ({before}) USING ({keys}) ORDER BY {ROW}"
        return [int(row[0]) for row in connection.execute(query).fetchall()]
