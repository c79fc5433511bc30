"""Transforms of `include/transforms`: loaded by reference, evaluated by Ibis on a DuckDB connection."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.errors import ContractError, SpecError

Tables = dict[str, Any]
Transform = Callable[[Tables], Any]


def load(include: Path, reference: str) -> Transform:
    """The function of `file.py:function`, in a module named by the file's digest: a changed file is a new module.

    Raises SpecError when the file or the function is missing, or the file cannot be run.
    """
    file, _, name = reference.partition(":")
    path = include / "transforms" / file
    if not path.is_file():
        raise SpecError(f"transform {reference}", got=f"no {path}", expected="a Python file in include/transforms")
    module_name = f"slipway_transform_{path.stem}_{file_digest(path)}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise SpecError(f"transform {path}", got=f"{type(error).__name__}: {error}", expected="a module") from error
        sys.modules[module_name] = module
    function = getattr(module, name, None)
    if not callable(function):
        raise SpecError(f"transform {path}", got=f"no function {name}", expected=f"def {name}(tables)")
    return function  # type: ignore[no-any-return]


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
