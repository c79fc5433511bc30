"""What keeps Delta tables small and lets rows go: merging, vacuum, a short log; deleting and updating rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
from pyarrow import fs

from pipelines.adapters.delta_lake import TRIES, DeltaLake
from pipelines.contracts.errors import TransientError

if TYPE_CHECKING:
    from deltalake import DeltaTable


ORPHAN_HOURS = 24
"""How long a file that no version knows of stays at least."""


class Maintained(msgspec.Struct, frozen=True):
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
    """Leave nothing of a table but its newest version, in the files and in the log; returns how many files went."""
    removed = _vacuum(lake, table, 0)
    _forget_log(lake, table, _checkpoint(lake, table))
    return removed


def maintain(lake: DeltaLake, table: str, retention_hours: float) -> Maintained:
    """Merge small files of each partition, then remove files that no version of the last hours needs.

    Readers of older versions fail from then on. 0 hours: also the log's older entries go, and with them what they
    say of the values that were there. Raises TransientError when other writers have won `TRIES` times.
    """
    merged: Mapping[str, Any] = {}

    def compact(opened: DeltaTable) -> Mapping[str, Any]:
        nonlocal merged
        merged = opened.optimize.compact()
        return merged

    _changed(lake, table, compact, "numFilesRemoved")
    removed = _vacuum(lake, table, math.ceil(retention_hours))
    version = _checkpoint(lake, table)
    if retention_hours == 0:
        _forget_log(lake, table, version)
    return Maintained(table, int(merged["numFilesRemoved"]), int(merged["numFilesAdded"]), removed)


def _vacuum(lake: DeltaLake, table: str, hours: int) -> int:
    """Remove files that versions have let go of for that long, and those that no version knows of.

    The latter may be on their way into a version, for others go on writing: they go after a day at the earliest.
    """
    opened = lake.open(table)
    removed = opened.vacuum(retention_hours=hours, enforce_retention_duration=False, dry_run=False)
    orphans = max(hours, ORPHAN_HOURS)
    removed += opened.vacuum(retention_hours=orphans, enforce_retention_duration=False, dry_run=False, full=True)
    return len(removed)


def _checkpoint(lake: DeltaLake, table: str) -> int:
    """Make a checkpoint of the newest version; returns its number."""
    opened = lake.open(table)
    opened.create_checkpoint()
    return opened.version()


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
