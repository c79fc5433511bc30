"""The lake's tables that one feed of a stream fills, and how far each has come.

Each commit carries, per source of messages, the offset behind the last one that the table has (its *mark*), as an
application transaction; so what a table already has is left out when a batch is given again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipelines.adapters.delta_lake import MICROS_UTC, DeltaLake
from pipelines.wiring import datasets, features


class StreamTables:
    """Marks of the dataset's table, its quarantine, and its views' tables. One process writes them at a time.

    versions: the Feast name of each view, by its name.
    """

    def __init__(self, lake: DeltaLake, dataset: str, versions: Mapping[str, str]) -> None:
        self._lake = lake
        self.dataset = datasets.table_of(dataset)
        self.quarantine = f"quarantine/{dataset}"
        self._filled = [self.dataset, *map(features.table_of, versions.values())]
        self._marks: dict[tuple[str, str], int] = {}

    def applied(self, source: str) -> int:
        """The offset behind the last message of a source that every table has; 0 for none."""
        return min(self.mark(table, source) for table in self._filled)

    def next_offset(self, source: str) -> int:
        """The offset behind the last message of a source that any table has."""
        return max(self.mark(table, source) for table in (self.quarantine, *self._filled))

    def mark(self, table: str, source: str) -> int:
        """The offset behind the last message of a source that a table has; 0 for none."""
        if (table, source) not in self._marks:
            self._marks[table, source] = self._lake.applied(table, source) or 0
        return self._marks[table, source]

    def news(self, table: str, ends: Mapping[str, int]) -> dict[str, int]:
        """The ends of a batch, by source, that the table has not got to yet."""
        return {source: end for source, end in ends.items() if end > self.mark(table, source)}

    def append(
        self,
        table: str,
        rows: pa.Table,
        marks: Mapping[str, int],
        others: Mapping[str, int],
        partition_by: Sequence[str] = ("day",),
    ) -> None:
        """Append rows as one commit with the marks of sources, and with the last numbers of other applications."""
        self._lake.append_marked(table, rows, {**marks, **others}, partition_by)
        self._marks.update({(table, source): end for source, end in marks.items()})

    def set_aside(
        self, name: str, texts: Sequence[str | None], reasons: Sequence[str], ends: Mapping[str, int], now_us: int
    ) -> None:
        """Put rows of a dataset or a view into its quarantine, with their reasons; once a batch."""
        table = f"quarantine/{name}"
        if not (marks := self.news(table, ends)):
            return
        run = ", ".join(f"{source} to {end}" for source, end in sorted(ends.items()))
        now = pa.array([now_us] * len(texts), pa.int64()).cast(MICROS_UTC)
        columns = [pa.array(texts, pa.string()), pa.array(reasons), pa.array([run] * len(texts)), now]
        self.append(table, pa.Table.from_arrays(columns, schema=datasets.QUARANTINE), marks, {}, partition_by=[])

    def pass_by(self, ends: Mapping[str, int]) -> None:
        """Mark every table that a batch held nothing for: it has come as far all the same."""
        for table in self._filled:
            if (taken := self.news(table, ends)) and self._lake.exists(table):
                self._lake.mark(table, taken)
                self._marks.update({(table, source): end for source, end in taken.items()})

    def compact(self) -> None:
        """Merge small files; the old ones go when the lake is maintained."""
        for table in self._filled:
            if self._lake.exists(table):
                self._lake.compact(table)
