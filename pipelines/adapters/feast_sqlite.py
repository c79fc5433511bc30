"""Feast's SQLite online store, written in bulk: Feast's own tables and bytes, WAL, and never an older row over a newer.

Feast's writer makes one statement a value, opens the database without WAL and compares no times. Readers are its SDK
and the gateway. `event_ts` is whole seconds since the epoch, as Feast stores it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.features.online_layout import stored_seconds, texts_of
from pipelines.features.publishing import OnlineRows

_PROGRESS = "slipway_materialised"


class FeastSqlite:
    """One writer's connection. Use as a context manager, or call `close`."""

    def __init__(self, path: Path, project: str = "slipway") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.project = project
        # Autocommit: transactions are begun and ended here, one for each write.
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("PRAGMA cache_size=-65536")  # 64 MB: a bulk write keeps its pages until it commits
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {_PROGRESS} (feature_view TEXT PRIMARY KEY, through_us INTEGER NOT NULL)"
        )

    def __enter__(self) -> FeastSqlite:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def create(self, view: str) -> None:
        """Make the view's table as Feast makes it, if it is not there."""
        table = self._table(view)
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {table} (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT,  "
            "vector_value BLOB, event_ts timestamp, created_ts timestamp,  PRIMARY KEY(entity_key, feature_name))"
        )
        index = table[:-1] + '_ek"'
        self._connection.execute(f"CREATE INDEX IF NOT EXISTS {index} ON {table} (entity_key);")

    def through_us(self, view: str) -> int | None:
        """The event time up to which the view is materialised; None for never."""
        found = self._connection.execute(
            f"SELECT through_us FROM {_PROGRESS} WHERE feature_view = ?", (view,)
        ).fetchone()
        return int(found[0]) if found else None

    def write(
        self, view: str, features: Sequence[str], rows: OnlineRows, through_us: int, *, correct: bool = False
    ) -> None:
        """Write rows and how far the view now is, in one transaction. A row that is not newer changes nothing.

        correct: one of the same time replaces what is there.
        """
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        try:
            self._connection.executemany(self._upsert(view, features, correct=correct), _values(rows))
            execute(
                f"INSERT INTO {_PROGRESS} VALUES (?, ?) ON CONFLICT(feature_view) DO UPDATE SET through_us = "
                "max(through_us, excluded.through_us)",
                (view, through_us),
            )
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise

    def _upsert(self, view: str, features: Sequence[str], *, correct: bool) -> str:
        """Writes the whole row of a key: parameters are the key, its two times, then value and text of each feature.

        A statement a key, not a value, halves the work: the table has a row and two index entries a value.
        """
        # Both are whole seconds: two rows created within one cannot be told apart by it.
        same_time = "true" if correct else "excluded.created_ts > created_ts"
        # In the order of the index, its pages are each filled once.
        inserted = ", ".join(
            f"(?1, '{name.replace(chr(39), chr(39) * 2)}', ?{4 + 2 * at}, ?{5 + 2 * at}, ?2, ?3)"
            for name, at in sorted((name, at) for at, name in enumerate(features))
        )
        return (
            f"INSERT INTO {self._table(view)} (entity_key, feature_name, value, value_text, event_ts, created_ts) "
            f"VALUES {inserted} ON CONFLICT(entity_key, feature_name) DO UPDATE SET value = excluded.value, "
            "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts "
            "WHERE excluded.event_ts > event_ts "
            f"OR (excluded.event_ts = event_ts AND {same_time})"
        )

    def views(self) -> list[str]:
        """Every view that has been materialised."""
        return [row[0] for row in self._connection.execute(f"SELECT feature_view FROM {_PROGRESS}")]

    def drop(self, view: str, features: Sequence[str]) -> None:  # noqa: ARG002  # a table holds them all
        """Remove a view's table, and how far it was, in one transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        execute(f"DROP TABLE IF EXISTS {self._table(view)}")
        execute(f"DELETE FROM {_PROGRESS} WHERE feature_view = ?", (view,))
        execute("COMMIT")

    def entities(self) -> Iterator[bytes]:
        """The key of every entity that has rows, view by view."""
        for view in self.views():
            for (key,) in self._connection.execute(f"SELECT DISTINCT entity_key FROM {self._table(view)}"):
                yield bytes(key)

    def forget(self, entities: Sequence[bytes]) -> None:
        """Remove every row of these entities, of all views, in one transaction; their bytes are overwritten."""
        execute = self._connection.execute
        execute("PRAGMA secure_delete=ON")
        execute("BEGIN IMMEDIATE")
        try:
            for view in self.views():
                self._connection.executemany(
                    f"DELETE FROM {self._table(view)} WHERE entity_key = ?", [(key,) for key in entities]
                )
            execute("COMMIT")
        except BaseException:
            execute("ROLLBACK")
            raise
        execute("PRAGMA wal_checkpoint(TRUNCATE)")  # pages of before lie in the log until then

    def _table(self, view: str) -> str:
        name = f"{self.project}_{view}".replace('"', '""')
        return f'"{name}"'


def _values(rows: OnlineRows) -> Iterator[tuple[object, ...]]:
    """The parameters of every key."""
    stamps = [stored_seconds(us) for us in rows.event_us]
    created = [stored_seconds(us) for us in rows.created_us]
    columns: list[list[Any]] = [rows.keys, stamps, created]
    for messages, column in zip(rows.messages(), rows.columns, strict=True):
        columns += [messages, texts_of(column)]
    return zip(*columns, strict=True)
