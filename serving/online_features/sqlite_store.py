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
from itertools import chain
from pathlib import Path
from time import monotonic, perf_counter_ns

from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import ContractError
from serving.online_features import feast_values
from serving.online_features.plan import Found, ReadPlan, Reads, Row, ViewFetch, Wanted, time_budget_s

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

    def read(self, plan: ReadPlan, requests: Sequence[Wanted]) -> list[Reads]:
        """Every view of the plan for every row of each request. Never raises for the store's condition."""
        started = perf_counter_ns()
        keys = [plan.keys(columns, rows) for columns, rows, _ in requests]
        self._local.deadline = monotonic() + time_budget_s(self._budget_s, sum(rows for _, rows, _ in requests))
        distinct = plan.distinct(keys)
        found = self._at_once(plan, distinct)
        if found is None:
            found = [
                [self._find(view, of_entity) for view in entity.views]
                for entity, of_entity in zip(plan.entities, distinct, strict=True)
            ]
        took_us = (perf_counter_ns() - started) // 1000
        return [
            plan.reads(of_request, found, event_us, took_us)
            for of_request, (_, _, event_us) in zip(keys, requests, strict=True)
        ]

    async def readable_through(self, views: Sequence[str]) -> dict[str, int]:
        """Event time in microseconds up to which each view is materialised. Empty when the file cannot be read."""
        self._local.deadline = monotonic() + self._budget_s
        try:
            known = dict(self._connection().execute("SELECT feature_view, through_us FROM slipway_materialised"))
        except _UNREADABLE:
            return {}
        return {view: known[view] for view in views if view in known}

    def _at_once(self, plan: ReadPlan, keys: list[list[bytes]]) -> list[list[Found]] | None:
        """All views by one statement; None when any cannot be read, to find out which, or for more keys than it takes.

        One statement is one read transaction, with its locks taken once, and one moment for all views.
        """
        asked = [
            _padded(of_entity) for entity, of_entity in zip(plan.entities, keys, strict=True) for _ in entity.views
        ]
        if sum(map(len, asked)) > _KEYS_PER_QUERY:
            return None
        text, views = _statement(self._project, plan, tuple(map(len, asked)))
        found = [Found({}) for _ in views]
        try:
            for number, key, name, message, stamp in self._connection().execute(text, list(chain(*asked))):
                places, rows = views[number], found[number].rows
                position = places.get(name)
                if position is None:
                    continue
                row = rows.get(key)
                if row is None:
                    row = rows[key] = (_stamp_us(stamp), [None] * len(places))
                row[1][position] = feast_values.decode(message)
        except _UNREADABLE:
            return None
        of_views = iter(found)
        return [[next(of_views) for _ in entity.views] for entity in plan.entities]

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


@lru_cache(maxsize=1024)
def _statement(project: str, plan: ReadPlan, keys: tuple[int, ...]) -> tuple[str, list[dict[str, int]]]:
    """One statement for so many keys of each view of a plan, and the features' places of each view."""
    views = [view for entity in plan.entities for view in entity.views]
    texts = [
        f"SELECT {number}, entity_key, feature_name, value, event_ts FROM {_table(project, view.view)}"
        f" WHERE entity_key IN ({','.join('?' * count)})"
        for number, (view, count) in enumerate(zip(views, keys, strict=True))
    ]
    return " UNION ALL ".join(texts), [view.features for view in views]


def _padded(keys: list[bytes]) -> list[bytes]:
    """The keys, the last one repeated up to a power of two: few texts of statements, each kept prepared."""
    if not keys:
        return keys
    return keys + keys[-1:] * ((1 << (len(keys) - 1).bit_length()) - len(keys))


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
