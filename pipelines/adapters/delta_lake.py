"""The lake: Delta tables in a directory, written by delta-rs and read by DuckDB.

Timestamps are stored in microseconds, UTC; a naive one is taken as UTC. One engine writes a table; a commit is atomic,
and a reader sees the version it opened. Other columns are refused, unless a write lets new ones in (`evolve`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from pyarrow import fs

from pipelines.adapters import delta_snapshots
from pipelines.adapters.delta_commits import TablePlace, Write, commit
from pipelines.adapters.delta_rows import MICROS_UTC, canonical, kept_from_arrow, scan_sql
from pipelines.adapters.s3_storage import arrow_filesystem, is_remote, storage_options
from pipelines.contracts.errors import NotFoundError, TransientError
from pipelines.settings import Settings

if TYPE_CHECKING:
    from deltalake import DeltaTable

TRIES = 5
__all__ = ["MICROS_UTC", "TRIES", "DeltaLake", "connect", "open_lake"]


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


def open_lake(settings: Settings) -> DeltaLake:
    """The installation's lake: where `SLIPWAY_LAKE` says, or a folder of its home."""
    if settings.lake_uri:
        return DeltaLake(settings.lake_uri, storage_options(settings.lake_endpoint))
    return DeltaLake(settings.lake)


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
        return self._place(table).exists()

    def version(self, table: str) -> int | None:
        """The table's newest version; None when it does not exist."""
        return self._seen(table).version() if self.exists(table) else None

    def applied(self, table: str, app: str) -> int | None:
        """The newest transaction number the application has applied to the table; None for none."""
        return self._seen(table).transaction_version(app) if self.exists(table) else None

    def append(
        self,
        table: str,
        data: pa.Table,
        partition_by: Sequence[str] = (),
        txn: tuple[str, int] | None = None,
        *,
        evolve: bool = False,
    ) -> bool:
        """Append rows as one commit. `txn` is (application, number): a number not above the last applied is a no-op.

        evolve: columns that the table has not are added to it, null in its older rows; nothing else may change.
        Returns whether a commit was made. Raises DataError when the schema differs from the table's, TransientError
        when other writers have won `TRIES` times.
        """
        return self._write(table, data, partition_by, txn, Write(evolve=evolve))

    def append_marked(
        self, table: str, data: pa.Table, marks: Mapping[str, int], partition_by: Sequence[str] = ()
    ) -> None:
        """Append rows as one commit that also makes each mark its application's last number (`applied`).

        The table has one writer, who knows that they are not applied yet. Raises as `append`.
        """
        opened = self.open(table) if self.exists(table) else None
        commit(self._place(table), opened, data, partition_by, None, Write(marks=marks))

    def advance(
        self,
        table: str,
        app: str,
        number: int,
        rows_after: Callable[[int | None], pa.Table],
        partition_by: Sequence[str] = (),
        first_marks: Mapping[str, int] | None = None,
        *,
        evolve: bool = False,
    ) -> int | None:
        """Append what lies after the application's last number, and make `number` its last, as one commit.

        rows_after: from the last number (None for none) to the rows still missing. When another writer of the same
        application commits first, they are asked for again: two overlapping spans never enter twice. The application's
        first commit makes `first_marks` the last numbers of theirs.
        Returns the number of rows appended; None when `number` is already reached. Raises as `append`.
        """
        for _ in range(TRIES):
            opened = self.open(table) if self.exists(table) else None
            last = opened.transaction_version(app) if opened is not None else None
            if last is not None and last >= number:
                return None
            rows = rows_after(last)
            try:
                how = Write(evolve=evolve, marks=first_marks if last is None else None)
                commit(self._place(table), opened, rows, partition_by, (app, number), how)
            except TransientError:
                continue
            return int(rows.num_rows)
        raise TransientError(f"lake table {table}", got=f"{TRIES} lost races", hint="Another writer is busy on it.")

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
        Returns whether a commit was made (`txn` as in `append`). When another writer commits first, the rows are
        replaced in what it left: both writes stand, unless both replace the same rows; then the later one does. Not
        so with `marks`: what they say was true of the version that was read, so a lost race raises TransientError.
        """
        return self._write(table, data, partition_by, txn, Write(replace=True, where=where, marks=marks))

    def mark(self, table: str, marks: Mapping[str, int]) -> None:
        """Make each number its application's last (`applied`), by a commit that changes no row."""
        opened = self.open(table)
        empty = pa.schema(opened.schema().to_arrow()).empty_table()
        commit(self._place(table), opened, empty, (), None, Write(marks=marks))

    def uris(self, table: str, version: int | None = None) -> list[str]:
        """The data files of the newest (or the given) version, in a fixed order."""
        return sorted(self._seen(table, version).file_uris())

    def partition_files(self, table: str, version: int | None = None) -> dict[str, frozenset[str]]:
        """The data files of each value of `day`, the table's one partition column."""
        found: dict[str, set[str]] = {}
        for uri in self._seen(table, version).file_uris():
            found.setdefault(uri.rpartition("/day=")[2].partition("/")[0], set()).add(uri)
        return {day: frozenset(files) for day, files in found.items()}

    def partitions(self, table: str, version: int, days: Sequence[str]) -> pa.Table:
        """The rows of these values of `day` at a version. Raises OSError when its files are gone."""
        opened = self._seen(table, version)
        schema = pa.schema(opened.schema().to_arrow())
        return opened.to_pyarrow_dataset(partitions=[("day", "in", list(days))]).to_table().select(schema.names)

    def schema(self, table: str) -> pa.Schema:
        """The table's Arrow schema."""
        return pa.schema(self._seen(table).schema().to_arrow())

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
            return canonical(connection.execute(f"SELECT {chosen} FROM lake_table{condition}").fetch_arrow_table())

    def bind(self, connection: duckdb.DuckDBPyConnection, name: str, table: str, version: int | None = None) -> None:
        """Make the table readable as the view `name` in a DuckDB connection, pinned to the version seen now."""
        opened = self._seen(table, version)
        if self.remote:
            # Through Arrow, which reads the columns and row groups asked for: DuckDB's own S3 reader is an extension.
            connection.register(f"{name} files", opened.to_pyarrow_dataset())
            chosen = ", ".join(kept_from_arrow(opened))
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS SELECT {chosen} FROM "{name} files"')
        elif not opened.file_uris():
            connection.register(name, pa.schema(opened.schema().to_arrow()).empty_table())
        else:
            connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {scan_sql(opened)}')

    def select_sql(self, table: str, version: int | None = None) -> str:
        """The table's rows as a statement that any DuckDB can run on this machine."""
        return scan_sql(self._seen(table, version))

    def tables(self, folder: str = "") -> list[str]:
        """The names of the tables in a folder (and those below it), in order."""
        if not self.remote:
            root = Path(self.root)
            return sorted(log.parent.relative_to(root).as_posix() for log in (root / folder).glob("**/_delta_log"))
        filesystem, path = self.files(folder)
        listed = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        logs = {info.path.partition("/_delta_log/")[0] for info in listed if "/_delta_log/" in info.path}
        inside = (log.removeprefix(path).strip("/") for log in logs)
        return sorted(f"{folder}/{name}".strip("/") for name in inside)

    def compact(self, table: str) -> dict[str, Any]:
        """Merge small files of each partition; readers of older versions keep theirs (no vacuum)."""
        return dict(self.open(table).optimize.compact())

    def files(self, table: str) -> tuple[Any, str]:
        """Arrow's file system of the lake, and where a table lies in it."""
        uri = self.uri(table).rstrip("/")
        if not self.remote:
            return fs.LocalFileSystem(), uri
        options = self._options or {}
        return arrow_filesystem(uri, options.get("AWS_ENDPOINT_URL", ""), options)

    def drop(self, table: str) -> None:
        """Remove a table with all its versions."""
        filesystem, path = self.files(table)
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.delete_dir(path)

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

    def _seen(self, table: str, version: int | None = None) -> DeltaTable:
        """As `open`, to be read only: a version that this process has loaded is not loaded again."""
        if self.remote:
            return self.open(table, version)
        return delta_snapshots.snapshot(self.uri(table), version, lambda: self.open(table, version))

    def _place(self, table: str) -> TablePlace:
        return TablePlace(table, self.uri(table), self._options)

    def _write(
        self,
        table: str,
        data: pa.Table,
        partition_by: Sequence[str],
        txn: tuple[str, int] | None,
        how: Write,
    ) -> bool:
        for _ in range(1 if how.marks else TRIES):
            opened = self.open(table) if self.exists(table) else None
            if opened is not None and txn is not None:
                applied = opened.transaction_version(txn[0])
                if applied is not None and applied >= txn[1]:
                    return False
            try:
                commit(self._place(table), opened, data, partition_by, txn, how)
            except TransientError as error:
                lost = error
                continue
            return True
        raise lost
