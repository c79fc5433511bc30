"""Rows on their way into and out of a Delta table: types, columns, and the SQL that reads a table's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.contracts.errors import DataError

if TYPE_CHECKING:
    from deltalake import DeltaTable

MICROS_UTC = pa.timestamp("us", tz="UTC")
EVOLVED = "slipway.evolved"
"""The property of a table whose files do not all have all of its columns."""
_HIVE_TYPES = {"date": "DATE", "string": "VARCHAR", "integer": "INTEGER", "long": "BIGINT", "boolean": "BOOLEAN"}


def scan_sql(opened: DeltaTable) -> str:
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
    # Looks into every file before the first row; only where columns were added has it to be.
    union = ", union_by_name=true" if EVOLVED in opened.metadata().configuration else ""
    return f"SELECT {columns} FROM read_parquet([{listed}], {hive}{union})"


def kept_from_arrow(opened: DeltaTable) -> list[str]:
    """SQL of each column, such that DuckDB itself compares texts, and no filter on them goes down to Arrow.

    Files that an update or a delete has rewritten hold Arrow's `string_view`, for which Arrow has no comparison.
    """
    partitions = opened.metadata().partition_columns
    return [
        f'"{field.name}" || \'\' AS "{field.name}"'
        if field.name not in partitions and pa.types.is_string(field.type)
        else f'"{field.name}"'
        for field in pa.schema(opened.schema().to_arrow())
    ]


def canonical(data: pa.Table) -> pa.Table:
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


def conform(table: str, data: pa.Table, schema: pa.Schema, *, evolve: bool = False) -> pa.Table:
    """`data` in the table's column order and exact types; only string widths and all-null columns are converted.

    evolve: columns that the table has not come behind its own. Raises DataError naming the columns that differ.
    """
    there, given = (
        dict(zip(schema.names, schema.types, strict=True)),
        dict(zip(data.column_names, data.schema.types, strict=True)),
    )
    added = [data.schema.field(name) for name in data.column_names if evolve and name not in there]
    wrong = sorted(
        name
        for name in there.keys() | given.keys() - {field.name for field in added}
        if name not in there or name not in given or not _storable(given[name], there[name])
    )
    if wrong:
        raise DataError(
            f"lake table {table}: columns {wrong}",
            got={name: str(given.get(name, "missing")) for name in wrong},
            expected={name: str(there.get(name, "no such column")) for name in wrong},
            hint="A table's schema is fixed; `evolve: add_columns` in a dataset's spec lets new columns in.",
        )
    fields = [*schema, *added]
    columns = [
        column if (column := data.column(field.name)).type.equals(field.type) else column.cast(field.type)
        for field in fields
    ]
    return pa.Table.from_arrays(columns, schema=pa.schema([field.with_nullable(True) for field in fields]))


def _storable(given: pa.DataType, stored: pa.DataType) -> bool:
    if given.equals(stored) or pa.types.is_null(given):
        return True
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(given) for test in text) and any(test(stored) for test in text)
