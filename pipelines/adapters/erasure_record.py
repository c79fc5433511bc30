"""The record of erasures: a hash chain beside those of the models, in the same append-only table, anchored alike."""

from __future__ import annotations

import msgspec

from pipelines.adapters.control_db import ControlDb
from pipelines.adapters.record_tables import RecordTables, head, insert_entry
from pipelines.contracts.clocks import wall_us
from pipelines.datasets.erasure import Decided, Done, Erasure, body_of, erasures_of
from pipelines.rollout import record

ERASURES = "*erasures"
"""In the place of a model's name; no model may have it."""


class ErasureRecord:
    """Reads the record of erasures and adds to it."""

    def __init__(self, db: ControlDb) -> None:
        self.db = db

    def add(self, what: Decided | Done) -> int:
        """Append an entry; returns its number."""
        with self.db.write() as connection:
            line = record.entry(ERASURES, head(connection, ERASURES), body_of(what))
            insert_entry(connection, line, None, "decided" if isinstance(what, Decided) else "done", 0, wall_us())
        return line.n

    def newest(self) -> int:
        """The number of the newest entry; 0 for none."""
        with self.db.read() as connection:
            line = head(connection, ERASURES)
        return 0 if line is None else line.n

    def all(self) -> list[Erasure]:
        """Every erasure, oldest first."""
        return erasures_in(RecordTables(self.db).entries(ERASURES))


def erasures_in(entries: list[record.Entry]) -> list[Erasure]:
    """The erasures that entries of the record (or of its copy) tell of."""
    return erasures_of((line.n, msgspec.json.decode(line.body)) for line in entries)
