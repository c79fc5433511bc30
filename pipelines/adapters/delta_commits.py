"""One commit on top of one version of a table: what is written, what Delta refuses, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from pipelines.adapters import delta_snapshots
from pipelines.adapters.delta_rows import EVOLVED, canonical, conform
from pipelines.contracts.errors import DataError, TransientError

if TYPE_CHECKING:
    from deltalake import DeltaTable


class TablePlace(NamedTuple):
    """A table by name, and where it lies: a folder, or a URI with delta-rs' storage options of it."""

    name: str
    uri: str
    options: dict[str, str] | None

    @property
    def remote(self) -> bool:
        """Whether it lies in an object store."""
        return self.options is not None

    def exists(self) -> bool:
        """Whether the table has at least one commit."""
        if not self.remote and not Path(self.uri, "_delta_log").is_dir():
            return False
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self.uri, self.options))


class Write(NamedTuple):
    """How rows are written.

    replace: rows are replaced, those that `where` selects (None: all). evolve: columns may be added. marks: numbers by
    application that the commit makes the last applied.
    """

    replace: bool = False
    where: str | None = None
    evolve: bool = False
    marks: Mapping[str, int] | None = None


def commit(
    table: TablePlace,
    opened: DeltaTable | None,
    data: pa.Table,
    partition_by: Sequence[str],
    txn: tuple[str, int] | None,
    how: Write,
) -> None:
    """Write on top of the version that was opened (None: the table is new).

    Delta refuses a commit whose application has committed since then, and a second creation: TransientError. Rows that
    the table or `how` does not allow raise DataError.
    """
    from deltalake import CommitProperties, Transaction, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    what = f"lake table {table.name}"
    numbers = [*([txn] if txn is not None else []), *(how.marks or {}).items()]
    properties = CommitProperties(app_transactions=[Transaction(*number) for number in numbers]) if numbers else None
    target = canonical(data)
    partitions = list(partition_by) or None
    try:
        if opened is None:
            if not table.remote:
                Path(table.uri).mkdir(parents=True, exist_ok=True)
            write_deltalake(
                table.uri,
                target,
                mode="error",
                partition_by=partitions,
                commit_properties=properties,
                storage_options=table.options,
            )
            return
        schema = pa.schema(opened.schema().to_arrow())
        target = conform(table.name, target, schema, evolve=how.evolve)
        if target.num_columns > len(schema) and EVOLVED not in opened.metadata().configuration:
            opened.alter.set_table_properties({EVOLVED: "true"}, raise_if_not_exists=False)
        kind: dict[str, Any] = {"mode": "append"}
        if how.replace:
            kind = {"mode": "overwrite", "predicate": how.where}
        if how.evolve:
            kind["schema_mode"] = "merge"
        write_deltalake(opened, target, partition_by=partitions, commit_properties=properties, **kind)
        if not table.remote:
            delta_snapshots.keep(table.uri, opened)
    except CommitFailedError as error:
        raise TransientError(what, got=str(error), hint="Another writer won; repeat the write.") from error
    except DeltaError as error:
        if opened is None and table.exists():
            raise TransientError(what, got="made by another writer just now", hint="Repeat the write.") from error
        if log_was_cut(error):
            raise TransientError(what, got="swept by another process just now", hint="Repeat the write.") from error
        expected = f"rows that satisfy {how.where}" if how.where else "rows that the table takes"
        raise DataError(what, got=str(error), expected=expected) from error


def log_was_cut(error: Exception) -> bool:
    """Whether a table could not be used because its log was cut since it was opened: it was swept."""
    told = str(error)
    return "Invalid table version" in told or ("_delta_log" in told and "not found" in told.lower())
