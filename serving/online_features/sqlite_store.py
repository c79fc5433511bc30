"""Feast's SQLite online store, read without the SDK: a table `<project>_<view>`, a row a feature.

Reading is synchronous: a key takes microseconds, and a writer in WAL mode never makes a reader wait. The budget bounds
what can take long: waiting for a lock, and statements over many keys.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from time import monotonic, perf_counter_ns

from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import Columns
from serving.online_features import feast_values
from serving.online_features.feast_values import Value
from serving.online_features.plan import Found, Keys, ReadPlan, Reads, Row, ViewFetch, time_budget_s

# SQLite's oldest limit on bound parameters is 999.
_KEYS_PER_QUERY = 900
# Instructions of SQLite's machine between two looks at the clock: about a hundred keys.
_INSTRUCTIONS_PER_LOOK = 10_000
# Pages kept in memory: lookups by key jump about the file. In KiB, negative as SQLite wants it.
_CACHE_KIB = -65_536
_UNREADABLE = (sqlite3.Error, OSError, ContractError, ValueError, IndexError, TypeError)


class SqliteStore:
    """Reads with one read-only connection a thread. `budget_ms` is wall time for each started hundred rows."""

    is_local = True

    def __init__(self, path: Path, budget_ms: float = 5.0, project: str = "slipway") -> None:
        self._path = str(path)
        self._budget_s = budget_ms / 1000
        self._project = project
        self._local = threading.local()

    async def start(self) -> None:
        """There is nothing to connect to: the file is opened by the first read."""

    async def stop(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def read(self, plan: ReadPlan, columns: Columns, rows: int, event_us: int) -> Reads:
        """Every view of the plan for every row of a request at `event_us`. Never raises for the store's condition."""
        started = perf_counter_ns()
        keys = plan.keys(columns, rows)
        self._local.deadline = monotonic() + time_budget_s(self._budget_s, rows)
        found = self._at_once(plan, keys) if rows == 1 else None
        if found is None:
            found = [
                [self._find(view, of_entity.unique) for view in entity.views]
                for entity, of_entity in zip(plan.entities, keys, strict=True)
            ]
        return plan.reads(keys, found, event_us, (perf_counter_ns() - started) // 1000)

    async def readable_through(self, views: Sequence[str]) -> dict[str, int]:
        """Event time in microseconds up to which each view is materialised. Empty when the file cannot be read."""
        self._local.deadline = monotonic() + self._budget_s
        try:
            known = dict(self._connection().execute("SELECT feature_view, through_us FROM slipway_materialised"))
        except _UNREADABLE:
            return {}
        return {view: known[view] for view in views if view in known}

    def _at_once(self, plan: ReadPlan, keys: list[Keys]) -> list[list[Found]] | None:
        """All views of a request of one row by one statement; None when any cannot be read, to find out which."""
        text, views = _statement(self._project, plan)
        asked = [
            of_entity.per_row[0] for entity, of_entity in zip(plan.entities, keys, strict=True) for _ in entity.views
        ]
        values: list[list[Value]] = [[None] * len(features) for features in views]
        stamps: list[int | float | str | None] = [None] * len(views)
        try:
            for number, name, message, stamp in self._connection().execute(text, asked).fetchall():
                position = views[number].get(name)
                if position is not None:
                    stamps[number] = stamp
                    values[number][position] = feast_values.decode(message)
            found = iter(
                Found({} if key is None or stamp is None else {key: (_stamp_us(stamp), row)})
                for key, stamp, row in zip(asked, stamps, values, strict=True)
            )
            return [[next(found) for _ in entity.views] for entity in plan.entities]
        except _UNREADABLE:
            return None

    def _find(self, view: ViewFetch, keys: list[bytes]) -> Found:
        found = Found({})
        if not keys:
            return found
        try:
            connection = self._connection()
            for first in range(0, len(keys), _KEYS_PER_QUERY):
                self._fetch(connection, view, keys[first : first + _KEYS_PER_QUERY], found.rows)
        except _UNREADABLE as error:
            return Found({}, "over its time budget" if _interrupted(error) else str(error))
        return found

    def _fetch(
        self, connection: sqlite3.Connection, view: ViewFetch, keys: list[bytes], into: dict[bytes, Row]
    ) -> None:
        # The text is the same for every request with as many keys: the connection keeps the statement prepared.
        for key, name, value, stamp in connection.execute(_query(self._project, view.view, len(keys)), keys):
            position = view.features.get(name)
            if position is None:
                continue
            row = into.get(key)
            if row is None:
                row = into[key] = (_stamp_us(stamp), [None] * len(view.features))
            row[1][position] = feast_values.decode(value)

    def _connection(self) -> sqlite3.Connection:
        local = self._local
        connection: sqlite3.Connection | None = getattr(local, "connection", None)
        inode = os.stat(self._path).st_ino  # noqa: PTH116 - a request's path: pathlib costs four times as much
        if connection is None or local.inode != inode:
            # A store that was rebuilt is another file under the same name.
            uri = f"file:{self._path}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=self._budget_s, check_same_thread=False)
            connection.set_progress_handler(lambda: int(monotonic() > local.deadline), _INSTRUCTIONS_PER_LOOK)
            connection.execute(f"PRAGMA cache_size = {_CACHE_KIB}")
            local.connection, local.inode = connection, inode
        return connection


@lru_cache(maxsize=1024)
def _query(project: str, view: str, keys: int) -> str:
    chosen = f"IN ({','.join('?' * keys)})"
    return f"SELECT entity_key, feature_name, value, event_ts FROM {_table(project, view)} WHERE entity_key {chosen}"


@lru_cache(maxsize=256)
def _statement(project: str, plan: ReadPlan) -> tuple[str, list[dict[str, int]]]:
    """One statement for one key of every view of a plan, the features' places of each; keys are bound in that order.

    One statement is one read transaction, with its locks taken once, and one moment for all views.
    """
    views = [view for entity in plan.entities for view in entity.views]
    texts = [
        f"SELECT {number}, feature_name, value, event_ts FROM {_table(project, view.view)} WHERE entity_key = ?"
        for number, view in enumerate(views)
    ]
    return " UNION ALL ".join(texts), [view.features for view in views]


def _table(project: str, view: str) -> str:
    name = f"{project}_{view}".replace('"', '""')
    return f'"{name}"'


@lru_cache(maxsize=4096)
def _stamp_us(stamp: int | float | str) -> int:
    """The event time of a row in microseconds.

    Feast 0.67 stores whole seconds: it takes the naive UTC moment for local time, so it is read back the same way
    (writer and reader run on one host). Other versions write ISO text in UTC.
    """
    if isinstance(stamp, str):
        return to_us(datetime.fromisoformat(stamp))
    return to_us(datetime.fromtimestamp(stamp))  # noqa: DTZ006 - local on purpose, see above


def _interrupted(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorname == "SQLITE_INTERRUPT"
