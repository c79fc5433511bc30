"""Jobs that keep the lake's tables small: which there are, and the care of one."""

from __future__ import annotations

import msgspec

from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.lake_maintenance import Maintained
from pipelines.adapters.lake_maintenance import maintain as of_table
from pipelines.settings import Settings


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table of the lake by name, as the next task takes it."""

    table: str


def tables(settings: Settings) -> list[Table]:
    """Every table of the lake."""
    return [Table(table=name) for name in open_lake(settings).tables()]


def maintain(settings: Settings, table: str) -> Maintained:
    """Merge a table's small files, and remove those that no version of the last `lake_retention_hours` needs.

    Raises NotFoundError, and TransientError when another writer wins again and again.
    """
    return of_table(open_lake(settings), table, settings.lake_retention_hours)
