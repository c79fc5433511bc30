"""What keeps Delta tables small and lets rows go: merging, vacuum, a short log; deleting and updating rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from pipelines.adapters.delta_lake import TRIES, DeltaLake
from pipelines.contracts.errors import TransientError

if TYPE_CHECKING:
    from deltalake import DeltaTable


class Maintained(NamedTuple):
    """What maintenance did to a table: files merged, into how many, files removed."""

    table: str
    merged: int
    into: int
    removed: int


def delete(lake: DeltaLake, table: str, where: str) -> int:
    """Delete the rows that `where` (SQL over columns) selects, as one commit; how many there were."""
    return _changed(lake, table, lambda opened: opened.delete(where), "num_deleted_rows")


def update(lake: DeltaLake, table: str, where: str, values: Mapping[str, str]) -> int:
    """Set columns (to SQL expressions) in the rows that `where` selects, as one commit; how many there were."""
    return _changed(lake, table, lambda opened: opened.update(dict(values), predicate=where), "num_updated_rows")


def merge(lake: DeltaLake, table: str, source: pa.Table, on: str, values: Mapping[str, str]) -> int:
    """Set columns in the rows (`t`) that a row of `source` (`s`) meets by the condition `on`, as one commit.

    Returns how many there were.
    """

    def change(opened: DeltaTable) -> Mapping[str, Any]:
        merging = opened.merge(source, on, source_alias="s", target_alias="t")
        return merging.when_matched_update(dict(values)).execute()

    return _changed(lake, table, change, "num_target_rows_updated")


def sweep(lake: DeltaLake, table: str) -> int:
    """Leave nothing of a table but its newest version, in the files and in the log; returns how many files went.

    Others may go on writing: of files that no version knows of, which may be on their way into one, only those of
    yesterday go.
    """
    opened = lake.open(table)
    removed = opened.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    removed += opened.vacuum(retention_hours=24, enforce_retention_duration=False, dry_run=False, full=True)
    opened = lake.open(table)
    opened.create_checkpoint()
    _forget_log(lake, table, opened.version())
    return len(removed)


def maintain(lake: DeltaLake, table: str, retention_hours: float) -> Maintained:
    """Merge small files of each partition, then remove files that no version of the last hours needs.

    Readers of older versions fail from then on. 0 hours: also the log's older entries go, and with them what they
    say of the values that were there.
    """
    merged = lake.compact(table)
    opened = lake.open(table)
    removed = opened.vacuum(
        retention_hours=math.ceil(retention_hours), enforce_retention_duration=False, dry_run=False, full=True
    )
    opened.create_checkpoint()
    if retention_hours == 0:
        _forget_log(lake, table, opened.version())
    return Maintained(table, int(merged["numFilesRemoved"]), int(merged["numFilesAdded"]), len(removed))


def _forget_log(lake: DeltaLake, table: str, version: int) -> None:
    """Remove the log's entries before the checkpoint just made: they hold the least and greatest values of files."""
    filesystem, path = lake.files(table)
    for info in filesystem.get_file_info(fs.FileSelector(f"{path}/_delta_log")):
        number = info.base_name.partition(".")[0]
        if number.isdigit() and int(number) < version:
            filesystem.delete_file(info.path)


def _changed(lake: DeltaLake, table: str, change: Callable[[DeltaTable], Mapping[str, Any]], counted: str) -> int:
    from deltalake.exceptions import CommitFailedError

    for _ in range(TRIES):
        try:
            return int(change(lake.open(table))[counted])
        except CommitFailedError as error:
            lost = error
    raise TransientError(f"lake table {table}", got=str(lost), hint="Another writer is busy on it.") from lost
