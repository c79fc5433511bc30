"""Transforms of `include/transforms`: loaded by reference, evaluated by Ibis on a DuckDB connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.errors import ContractError, SpecError
from pipelines.contracts.source_functions import load_function

Tables = dict[str, Any]
Transform = Callable[[Tables], Any]


def load(include: Path, reference: str) -> Transform:
    """The function of `file.py:function` in `include/transforms`.

    Raises SpecError when the file or the function is missing, or the file cannot be run.
    """
    file, _, name = reference.partition(":")
    path = include / "transforms" / file
    if not path.is_file():
        raise SpecError(f"transform {reference}", got=f"no {path}", expected="a Python file in include/transforms")
    try:
        return load_function(path, file_digest(path), name)
    except ContractError as error:
        raise SpecError(f"transform {path}", got=error.got, expected=error.expected) from error


def compiled(connection: duckdb.DuckDBPyConnection, include: Path, reference: str, tables: Sequence[str]) -> str:
    """The transform as one DuckDB query over the connection's views `tables`. Raises ContractError."""
    import ibis

    function = load(include, reference)
    backend = ibis.duckdb.from_connection(connection)
    try:
        expression = function({name: backend.table(name) for name in tables})
        return str(ibis.to_sql(expression, dialect="duckdb"))
    except (ibis.common.exceptions.IbisError, AttributeError, KeyError, TypeError) as error:
        raise _wrong(reference, error) from error


def evaluate(connection: duckdb.DuckDBPyConnection, include: Path, reference: str, tables: Sequence[str]) -> pa.Table:
    """The rows of a transform over the connection's views `tables`. Raises ContractError when it cannot be computed."""
    query = compiled(connection, include, reference, tables)
    try:
        return connection.execute(query).fetch_arrow_table()
    except duckdb.Error as error:
        raise _wrong(reference, error) from error


def _wrong(reference: str, error: Exception) -> ContractError:
    return ContractError(
        f"transform {reference}", got=f"{type(error).__name__}: {error}", expected="an Ibis table expression"
    )
