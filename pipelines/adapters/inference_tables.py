"""The inference log's tables as their one writer holds them: open between commits, and kept in few files.

Opening a table costs more with every commit since its last checkpoint, and every commit adds a small file; the
collector commits all the time. So tables stay open, and small files are merged now and then. Readers go through
`DeltaLake` and never notice: a merge is one commit, and files it replaced stay for an hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.adapters.delta_commits import log_was_cut
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.collect import quarantine
from pipelines.contracts.errors import TransientError

if TYPE_CHECKING:
    from deltalake import DeltaTable

APP = "collector"
MERGE_EVERY = 100
_MERGED_BYTES = 16 << 20
_KEEP_HOURS = 1
_KINDS = 4
"""Assignments, responses, labels and KPI values: so many tables share the time between two merges of one."""


class InferenceTables:
    """Appends to `inference/<kind>` of a lake. Only one may write at a time."""

    def __init__(self, lake: DeltaLake, *, merge_every: int = MERGE_EVERY) -> None:
        self._lake = lake
        self._merge_every = merge_every
        self._open: dict[str, DeltaTable] = {}
        self._commits: dict[str, int] = {}

    def append(self, kind: str, data: pa.Table, batch: int) -> bool:
        """Append the rows of a batch, unless that was done before. Returns whether a commit was made.

        Columns that an older table has not are added to it, null in its rows.
        Raises TransientError when somebody else has written meanwhile.
        """
        from deltalake import CommitProperties, Transaction, write_deltalake
        from deltalake.exceptions import CommitFailedError, DeltaError

        table = self._table(kind, data.column_names)
        if table is None:
            return self._lake.append(f"inference/{kind}", data, partition_by=("model",), txn=(APP, batch), evolve=True)
        properties = CommitProperties(app_transactions=[Transaction(APP, batch)])
        try:
            applied = table.transaction_version(APP)
            if applied is not None and applied >= batch:
                return False
            write_deltalake(table, data, mode="append", partition_by=["model"], commit_properties=properties)
            self._merge(kind, table)
        except CommitFailedError as error:
            del self._open[kind]
            raise TransientError(f"inference log {kind}", got=str(error), hint="Only one collector may run.") from error
        except DeltaError as error:
            del self._open[kind]
            if log_was_cut(error):
                raise TransientError(f"inference log {kind}", got="a table that was swept just now") from error
            raise
        return True

    def set_aside(self, data: pa.Table, batch: int) -> bool:
        """Put the frames of a batch that no event can be made of into quarantine, unless that was done before."""
        return self._lake.append(quarantine.TABLE, data, txn=(APP, batch))

    def _table(self, kind: str, columns: Sequence[str]) -> DeltaTable | None:
        """The table; None where there is none yet, or one without some of the columns."""
        if kind not in self._open:
            name = f"inference/{kind}"
            if not self._lake.exists(name):
                return None
            table = self._lake.open(name)
            if not set(columns) <= {field.name for field in table.schema().fields}:
                return None
            self._open[kind] = table
        return self._open[kind]

    def _merge(self, kind: str, table: DeltaTable) -> None:
        # Kinds take turns: a batch in which all of them were merged would hold evidence up for as long.
        turn = len(self._commits) * self._merge_every // _KINDS
        commits = self._commits[kind] = self._commits.get(kind, turn) + 1
        if commits % self._merge_every == 0:
            table.optimize.compact(target_size=_MERGED_BYTES)
            table.create_checkpoint()
            table.vacuum(retention_hours=_KEEP_HOURS, enforce_retention_duration=False, dry_run=False)
