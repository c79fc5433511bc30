"""The lake: Delta tables in a directory, written by delta-rs and read by DuckDB.

Timestamps are stored in microseconds, UTC; a naive one is taken as UTC. One engine writes a table; a commit is atomic,
and a reader sees the version it opened. Schema changes are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from pipelines.adapters.s3_storage import is_remote
from pipelines.contracts.errors import DataError, NotFoundError, TransientError

if TYPE_CHECKING:
    from deltalake import DeltaTable

ADVANCE_TRIES = 5
MICROS_UTC = pa.timestamp("us", tz="UTC")
_HIVE_TYPES = {"date": "DATE", "string": "VARCHAR", "integer": "INTEGER", "long": "BIGINT", "boolean": "BOOLEAN"}


def connect(
    memory_limit: str | None = None, temp_directory: str | None = None, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A private in-memory DuckDB whose sessions think in UTC.

    memory_limit: as DuckDB writes it (`4GB`); past it, it spills to `temp_directory`. None: DuckDB's own.
    """
    given = {"memory_limit": memory_limit, "temp_directory": temp_directory, "threads": threads}
    connection = duckdb.connect(":memory:", config={name: value for name, value in given.items() if value is not None})
    connection.execute("SET TimeZone='UTC'; SET preserve_insertion_order=false")
    return connection


class DeltaLake:
    """Tables by slash-separated name under `root` (`datasets/flights_landed`, `inference/label`).

    root: a folder, or a URI of an object store (`s3://bucket/prefix`). options: delta-rs' storage options of it.
    """

    def __init__(self, root: Path | str, options: Mapping[str, str] | None = None) -> None:
        self.root = str(root).rstrip("/")
        self.remote = is_remote(self.root)
        self._options = dict(options or {}) if self.remote else None

    def uri(self, table: str) -> str:
        """Where a table lies, whether or not it exists: a path, or a URI."""
        return f"{self.root}/{table}"

    def exists(self, table: str) -> bool:
        """Whether the table has at least one commit."""
        if not self.remote and not Path(self.uri(table), "_delta_log").is_dir():
            return False
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self.uri(table), self._options))

    def version(self, table: str) -> int | None:
        """The table's newest version; None when it does not exist."""
        return self.open(table).version() if self.exists(table) else None

    def applied(self, table: str, app: str) -> int | None:
        """The newest transaction number the application has applied to the table; None for none."""
        return self.open(table).transaction_version(app) if self.exists(table) else None

    def append(
        self,
        table: str,
        data: pa.Table,
        partition_by: Sequence[str] = (),
        txn: tuple[str, int] | None = None,
    ) -> bool:
        """Append rows as one commit. `txn` is (application, number): a number not above the last applied is a no-op.

        Returns whether a commit was made. Raises DataError when the schema differs from the table's, TransientError
        when another writer won.
        """
        return self._write(table, data, partition_by, txn, replace=False, where=None)

    def advance(
        self,
        table: str,
        app: str,
        number: int,
        rows_after: Callable[[int | None], pa.Table],
        partition_by: Sequence[str] = (),
        first_marks: Mapping[str, int] | None = None,
    ) -> int | None:
        """Append what lies after the application's last number, and make `number` its last, as one commit.

        rows_after: from the last number (None for none) to the rows still missing. When another writer of the same
        application commits first, they are asked for again: two overlapping spans never enter twice. The application's
        first commit makes `first_marks` the last numbers of theirs.
        Returns the number of rows appended; None when `number` is already reached. Raises as `append`.
        """
        for _ in range(ADVANCE_TRIES):
            opened = self.open(table) if self.exists(table) else None
            last = opened.transaction_version(app) if opened is not None else None
            if last is not None and last >= number:
                return None
            rows = rows_after(last)
            try:
                marks = first_marks if last is None else None
                self._commit(table, opened, rows, partition_by, (app, number), replace=False, where=None, marks=marks)
            except TransientError:
                continue
            return int(rows.num_rows)
        raise TransientError(
            f"lake table {table}", got=f"{ADVANCE_TRIES} lost races", hint="Another writer is busy on it."
        )

    def replace(
        self,
        table: str,
        data: pa.Table,
        partition_by: Sequence[str] = (),
        where: str | None = None,
        txn: tuple[str, int] | None = None,
        marks: Mapping[str, int] | None = None,
    ) -> bool:
        """Replace the rows that `where` (SQL over columns) selects by `data`, as one commit; without `where`, all rows.

        Every row of `data` must satisfy `where`. marks: numbers by application that the commit makes the last applied.
        Returns whether a commit was made (`txn` as in `append`).
        """
        return self._write(table, data, partition_by, txn, replace=True, where=where, marks=marks)

    def mark(self, table: str, marks: Mapping[str, int]) -> None:
        """Make each number its application's last (`applied`), by a commit that changes no row."""
        opened = self.open(table)
        empty = pa.schema(opened.schema().to_arrow()).empty_table()
        self._commit(table, opened, empty, (), None, replace=False, where=None, marks=marks)

    def uris(self, table: str, version: int | None = None) -> list[str]:
        """The data files of the newest (or the given) version, in a fixed order."""
        return sorted(self.open(table, version).file_uris())

    def partition_files(self, table: str, version: int | None = None) -> dict[str, frozenset[str]]:
        """The data files of each value of `day`, the table's one partition column."""
        found: dict[str, set[str]] = {}
        for uri in self.open(table, version).file_uris():
            found.setdefault(uri.rpartition("/day=")[2].partition("/")[0], set()).add(uri)
        return {day: frozenset(files) for day, files in found.items()}

    def partitions(self, table: str, version: int, days: Sequence[str]) -> pa.Table:
        """The rows of these values of `day` at a version. Raises OSError when its files are gone."""
        opened = self.open(table, version)
        schema = pa.schema(opened.schema().to_arrow())
        return opened.to_pyarrow_dataset(partitions=[("day", "in", list(days))]).to_table().select(schema.names)

    def schema(self, table: str) -> pa.Schema:
        """The table's Arrow schema."""
        return pa.schema(self.open(table).schema().to_arrow())

    def read(
        self,
        table: str,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        version: int | None = None,
    ) -> pa.Table:
        """The rows that `where` (DuckDB SQL) selects. Partition and row-group pruning are DuckDB's. No fixed order.

        Raises NotFoundError when the table does not exist.
        """
        with connect() as connection:
            self.bind(connection, "lake_table", table, version)
            chosen = ", ".join(f'"{name}"' for name in columns) if columns else "*"
            condition = f" WHERE {where}" if where else ""
            return _canonical(connection.execute(f"SELECT {chosen} FROM lake_table{condition}").fetch_arrow_table())

    def bind(self, connection: duckdb.DuckDBPyConnection, name: str, table: str, version: int | None = None) -> None:
        """Make the table readable as the view `name` in a DuckDB connection, pinned to the version seen now."""
        opened = self.open(table, version)
        if self.remote:
            # Through Arrow, which reads the columns and row groups asked for: DuckDB's own S3 reader is an extension.
            connection.register(name, opened.to_pyarrow_dataset())
        elif not opened.file_uris():
            connection.register(name, pa.schema(opened.schema().to_arrow()).empty_table())
        else:
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {_scan(opened)}')

    def select_sql(self, table: str, version: int | None = None) -> str:
        """The table's rows as a statement that any DuckDB can run on this machine."""
        return _scan(self.open(table, version))

    def compact(self, table: str) -> dict[str, Any]:
        """Merge small files of each partition; readers of older versions keep theirs (no vacuum)."""
        return dict(self.open(table).optimize.compact())

    def open(self, table: str, version: int | None = None) -> DeltaTable:
        """The table at its newest (or the given) version. Raises NotFoundError when it does not exist."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        try:
            return DeltaTable(self.uri(table), version=version, storage_options=self._options)
        except TableNotFoundError:
            root = Path(self.root)
            logs = () if self.remote else root.glob("*/*/_delta_log")
            near = sorted(log.parent.relative_to(root).as_posix() for log in logs)
            raise NotFoundError(
                "lake table", got=table, expected=f"one of {near}" if near else "a published table"
            ) from None

    def _write(
        self,
        table: str,
        data: pa.Table,
        partition_by: Sequence[str],
        txn: tuple[str, int] | None,
        *,
        replace: bool,
        where: str | None,
        marks: Mapping[str, int] | None = None,
    ) -> bool:
        opened = self.open(table) if self.exists(table) else None
        if opened is not None and txn is not None:
            applied = opened.transaction_version(txn[0])
            if applied is not None and applied >= txn[1]:
                return False
        self._commit(table, opened, data, partition_by, txn, replace=replace, where=where, marks=marks)
        return True

    def _commit(
        self,
        table: str,
        opened: DeltaTable | None,
        data: pa.Table,
        partition_by: Sequence[str],
        txn: tuple[str, int] | None,
        *,
        replace: bool,
        where: str | None,
        marks: Mapping[str, int] | None = None,
    ) -> None:
        """Write on top of the version that was opened (None: the table is new).

        Delta refuses a commit whose application has committed since then, and a second creation.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        numbers = [*([txn] if txn is not None else []), *(marks or {}).items()]
        properties = (
            CommitProperties(app_transactions=[Transaction(*number) for number in numbers]) if numbers else None
        )
        target = _canonical(data)
        partitions = list(partition_by) or None
        try:
            if opened is None:
                if not self.remote:
                    Path(self.uri(table)).mkdir(parents=True, exist_ok=True)
                write_deltalake(
                    self.uri(table),
                    target,
                    mode="error",
                    partition_by=partitions,
                    commit_properties=properties,
                    storage_options=self._options,
                )
                return
            target = _conform(table, target, pa.schema(opened.schema().to_arrow()))
            if replace:
                write_deltalake(
                    opened,
                    target,
                    mode="overwrite",
                    partition_by=partitions,
                    predicate=where,
                    commit_properties=properties,
                )
            else:
                write_deltalake(opened, target, mode="append", partition_by=partitions, commit_properties=properties)
        except CommitFailedError as error:
            hint = "Another writer won; repeat the write."
            raise TransientError(f"lake table {table}", got=str(error), hint=hint) from error
        except DeltaError as error:
            if opened is None and self.exists(table):
                raise TransientError(f"lake table {table}", got="made by another writer just now") from error
            raise DataError(f"lake table {table}", got=str(error), expected=f"rows that satisfy {where}") from error


def _scan(opened: DeltaTable) -> str:
    """SQL that reads the files of a local table, with its partitions' columns in their types."""
    schema = pa.schema(opened.schema().to_arrow())
    columns = ", ".join(f'"{field.name}"' for field in schema)
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in sorted(opened.file_uris()))
    if not listed:
        raise DataError("lake table", got="no files", expected="rows")
    partitions = opened.metadata().partition_columns
    types = {
        field.name: _HIVE_TYPES.get(str(field.type.type), "VARCHAR")
        for field in opened.schema().fields
        if field.name in partitions
    }
    hive = "hive_partitioning=false"
    if types:
        kinds = ", ".join(f"'{key}': {kind}" for key, kind in types.items())
        hive = f"hive_partitioning=true, hive_types={{{kinds}}}"
    return f"SELECT {columns} FROM read_parquet([{listed}], {hive})"


def _canonical(data: pa.Table) -> pa.Table:
    """`data` with every timestamp in microseconds UTC and no dictionary columns."""
    fields = []
    for field in data.schema:
        kind = field.type
        if pa.types.is_timestamp(kind):
            kind = MICROS_UTC
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        fields.append(field.with_type(kind).with_nullable(True))
    schema = pa.schema(fields)
    if schema.equals(data.schema):
        return data
    columns = []
    for name, field in zip(data.column_names, schema, strict=True):
        column = data.column(name)
        columns.append(column if column.type.equals(field.type) else column.cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _conform(table: str, data: pa.Table, schema: pa.Schema) -> pa.Table:
    """`data` in the table's column order and exact types; only string widths and all-null columns are converted.

    Raises DataError naming the columns that differ.
    """
    there, given = (
        dict(zip(schema.names, schema.types, strict=True)),
        dict(zip(data.column_names, data.schema.types, strict=True)),
    )
    wrong = sorted(
        name
        for name in there.keys() | given.keys()
        if name not in there or name not in given or not _storable(given[name], there[name])
    )
    if wrong:
        raise DataError(
            f"lake table {table}: columns {wrong}",
            got={name: str(given.get(name, "missing")) for name in wrong},
            expected={name: str(there.get(name, "no such column")) for name in wrong},
            hint="A table's schema changes only by a declared migration.",
        )
    columns = [
        column if (column := data.column(field.name)).type.equals(field.type) else column.cast(field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))


def _storable(given: pa.DataType, stored: pa.DataType) -> bool:
    if given.equals(stored) or pa.types.is_null(given):
        return True
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(given) for test in text) and any(test(stored) for test in text)
