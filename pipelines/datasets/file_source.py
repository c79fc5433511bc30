"""Datasets that are files: CSV or Parquet, one file or a glob."""

from __future__ import annotations

from pathlib import Path

import duckdb

from pipelines.contracts.errors import DataError
from pipelines.spec.dataset import DatasetSpec, FileSource


def bind(
    connection: duckdb.DuckDBPyConnection, include: Path, spec: DatasetSpec, source: FileSource, name: str
) -> None:
    """Make the file readable as the view `name`; CSV values stay text. Raises DataError for no file or no column."""
    path = Path(source.path)
    full = path if path.is_absolute() else include / path
    files = sorted(full.parent.glob(full.name))
    if not files:
        raise DataError(f"dataset {spec.name}: source file", got=f"no {full}", expected=f"a {source.format} file")
    listed = ", ".join(_text(str(file)) for file in files)
    nulls = ", ".join(_text(value) for value in source.null_values)
    read = (
        f"read_csv([{listed}], all_varchar=true, header=true, union_by_name=true, delim={_text(source.delimiter)}, "
        f"nullstr=[{nulls}])"
        if source.format == "csv"
        else f"read_parquet([{listed}], union_by_name=true, hive_partitioning=false)"
    )
    try:
        connection.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS SELECT * FROM {read}')
        there = [str(row[0]) for row in connection.execute(f'DESCRIBE "{name}"').fetchall()]
    except duckdb.Error as error:
        raise DataError(f"dataset {spec.name}: {full} cannot be read", got=str(error).splitlines()[0]) from error
    if missing := [column for column in spec.columns if column not in there]:
        raise DataError(
            f"dataset {spec.name}: {full} lacks column {', '.join(missing)}",
            got=there,
            expected=list(spec.columns),
            hint="Correct the file, or the columns of the spec.",
        )


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
