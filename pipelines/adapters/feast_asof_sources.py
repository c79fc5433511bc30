"""File sources of `AsofOfflineStore`: read as DuckDB relations, appended to, and written as saved datasets.

Parquet and Delta, local and on S3. Local files are scanned by DuckDB; remote ones through Arrow. Either way only the
columns and row groups that a query needs are read.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource, SavedDatasetFileStorage
from feast.repo_config import RepoConfig
from pyarrow import fs

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.s3_storage import arrow_filesystem, is_remote, storage_options


def bind_source(connection: duckdb.DuckDBPyConnection, config: RepoConfig, source: DataSource, name: str) -> None:
    """Make a file source readable as the view `name`, with the names of its field mapping beside its own.

    Raises ValueError for a source of another kind.
    """
    file = _file_source(source)
    path = _path(config, file)
    raw = f"{name} raw"
    if isinstance(file.file_format, DeltaFormat):
        lake, table = _delta(path, file)
        lake.bind(connection, raw, table)
    elif is_remote(path):
        filesystem, inner = arrow_filesystem(path, file.s3_endpoint_override or "", file.resolve_credentials())
        connection.register(raw, ds.dataset(inner, filesystem=filesystem, format="parquet", partitioning="hive"))
    else:
        connection.execute(f'CREATE OR REPLACE TEMP VIEW "{raw}" AS FROM {_scan(path)}')
    connection.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS {_mapped(connection, file, _quoted(raw))}')


def source_sql(config: RepoConfig, source: DataSource) -> str:
    """The same relation as text that any DuckDB can run. Raises NotImplementedError for a remote source."""
    file = _file_source(source)
    path = _path(config, file)
    if is_remote(path):
        raise NotImplementedError(f"{path}: a remote source is read through Arrow and has no SQL")
    with duckdb.connect() as connection:
        if isinstance(file.file_format, DeltaFormat):
            lake, table = _delta(path, file)
            relation = f"({lake.select_sql(table)})"
        else:
            relation = _scan(path)
        return f"({_mapped(connection, file, relation)})"


def append(config: RepoConfig, source: DataSource, rows: pa.Table) -> None:
    """Append rows to a source. Raises ValueError when the columns are not the source's, in its order.

    Columns may go by the names of the source's field mapping: Feast hands over its own.
    One Delta commit; a new file in a Parquet directory; a single Parquet file is replaced by one that has both.
    """
    file = _file_source(source)
    path = _path(config, file)
    own = {new: old for old, new in file.field_mapping.items()}
    rows = rows.rename_columns([own.get(name, name) for name in rows.column_names])
    if isinstance(file.file_format, DeltaFormat):
        lake, table = _delta(path, file)
        schema = lake.schema(table)
        _check_columns(schema, rows)
        lake.append(table, rows.cast(pa.schema([schema.field(column) for column in rows.column_names])))
        return
    if is_remote(path):
        filesystem, inner = arrow_filesystem(path, file.s3_endpoint_override or "", file.resolve_credentials())
        there = ds.dataset(inner, filesystem=filesystem, format="parquet")
        _check_columns(there.schema, rows)
        if inner.endswith(".parquet"):
            merged = pa.concat_tables([there.to_table(), rows.cast(there.schema)])
            pq.write_table(merged, inner, filesystem=filesystem)
        else:
            pq.write_table(rows.cast(there.schema), f"{inner}/{uuid.uuid4().hex}.parquet", filesystem=filesystem)
        return
    if Path(path).is_dir():
        schema = ds.dataset(path, format="parquet").schema
        _check_columns(schema, rows)
        temporary = Path(path) / f".{uuid.uuid4().hex}.tmp"
        pq.write_table(rows.cast(schema), temporary)
        temporary.rename(Path(path) / f"{uuid.uuid4().hex}.parquet")
        return
    with _one_writer(Path(path).parent):
        there = pq.read_table(path)
        _check_columns(there.schema, rows)
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        pq.write_table(pa.concat_tables([there, rows.cast(there.schema)]), temporary)
        temporary.replace(path)


def save(
    repo_path: Path | None, storage: SavedDatasetFileStorage, answer: Callable[[], pa.Table], *, overwrite: bool
) -> None:
    """Write a saved dataset; the answer is computed only when it may be kept.

    Raises SavedDatasetLocationAlreadyExists when something is there and may not go.
    """
    options = storage.file_options
    path = FileSource.get_uri_for_file_path(repo_path=repo_path, uri=options.uri)
    endpoint = options.s3_endpoint_override
    if isinstance(options.file_format, DeltaFormat):
        lake, table = _delta(path, FileSource(path=path, s3_endpoint_override=endpoint))
        if lake.exists(table) and not overwrite:
            raise SavedDatasetLocationAlreadyExists(location=options.uri)
        lake.replace(table, answer())
        return
    filesystem, inner = arrow_filesystem(path, endpoint) if is_remote(path) else (fs.LocalFileSystem(), path)
    if not overwrite and filesystem.get_file_info(inner).type != fs.FileType.NotFound:
        raise SavedDatasetLocationAlreadyExists(location=options.uri)
    rows = answer()
    if inner.endswith(".parquet"):
        if not is_remote(path):
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, inner, filesystem=filesystem)
    else:
        pq.write_to_dataset(rows, root_path=inner, filesystem=filesystem, existing_data_behavior="delete_matching")


def log_features(data: pa.Table | Path, logging_config: LoggingConfig) -> None:
    """Append logged features to a destination as new Parquet files."""
    destination = logging_config.destination
    assert isinstance(destination, FileLoggingDestination)
    rows = ds.dataset(data, format="parquet").to_table() if isinstance(data, Path) else data
    filesystem, path = None, destination.path
    if is_remote(path):
        filesystem, path = arrow_filesystem(path, destination.s3_endpoint_override)
    pq.write_to_dataset(
        rows,
        root_path=path,
        filesystem=filesystem,
        partition_cols=destination.partition_by or None,
        basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
        existing_data_behavior="overwrite_or_ignore",
    )


def _file_source(source: DataSource | None) -> FileSource:
    if not isinstance(source, FileSource):
        name = getattr(source, "name", "")
        raise ValueError(f"AsofOfflineStore reads and writes FileSource; got {type(source).__name__} '{name}'")
    return source


def _path(config: RepoConfig, source: FileSource) -> str:
    path = str(FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.path))
    return path.removeprefix("file://")


def _scan(path: str) -> str:
    files = f"{path}/**/*.parquet" if Path(path).is_dir() else path
    escaped = files.replace("'", "''")
    return f"read_parquet('{escaped}')"


def _mapped(connection: duckdb.DuckDBPyConnection, source: FileSource, relation: str) -> str:
    there = [str(row[0]) for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
    mapped = {old: new for old, new in source.field_mapping.items() if old in there and new not in there}
    return f"SELECT *{''.join(f', {_quoted(old)} AS {_quoted(new)}' for old, new in mapped.items())} FROM {relation}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _delta(path: str, source: FileSource) -> tuple[DeltaLake, str]:
    root, _, table = path.rstrip("/").rpartition("/")
    if not is_remote(path):
        return DeltaLake(Path(root)), table
    return DeltaLake(root, storage_options(source.s3_endpoint_override or "", source.resolve_credentials())), table


def _check_columns(schema: pa.Schema, rows: pa.Table) -> None:
    if schema.names != rows.column_names:
        raise ValueError(
            f"The table has columns {rows.column_names}; the source expects {schema.names}, in this order."
        )


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """Writers of a folder's files take turns: what is read is still what is there when it is replaced."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
