"""Routes in a SQLite control database on this host: one PRAGMA a poll, a read only when somebody has written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from pipelines.contracts.errors import TransientError

_LATEST = "SELECT model, MAX(version), document FROM route GROUP BY model"
# A look that waits longer for a lock keeps the overrides of other workers waiting.
_LOCK_S = 0.1


class SqliteRoutes:
    """Reads when polled; the file may be replaced by another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._seen = -1

    def start(self, told: Callable[[], None]) -> None:
        """Nothing: SQLite tells nobody."""

    def wait(self, timeout_s: float) -> None:
        """Nothing: every poll looks."""

    def stop(self) -> None:
        """Close the database."""
        self._close()

    def poll(self) -> list[tuple[str, str]] | None:
        """(model, document) of every model's newest route, or None when nobody has written. Raises TransientError."""
        try:
            connection = self._connect()
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version == self._seen:
                return None
            rows = connection.execute(_LATEST).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._close()
            raise TransientError("control database", got=str(error), expected=f"to read {self._path}") from error
        self._seen = version
        return [(model, document) for model, _, document in rows]

    def _connect(self) -> sqlite3.Connection:
        inode = self._path.stat().st_ino
        if self._connection is None or inode != self._inode:
            self._close()
            self._connection = sqlite3.connect(
                f"file:{self._path}?mode=ro", uri=True, timeout=_LOCK_S, isolation_level=None, check_same_thread=False
            )
            self._inode = inode
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._seen = -1
