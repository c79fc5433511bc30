"""Online features read from Feast's own SQLite layout, without the SDK on the request's path.

The SDK's online read never checks a view's TTL; here it is enforced against the request's event time, and a row from
after the request is not used either. A missing store, table or row gives nulls, and the read says so in `degraded`.
"""

from __future__ import annotations

import sqlite3
import threading
from datetime import datetime
from pathlib import Path
from time import perf_counter_ns

import msgspec
import numpy as np

from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import FeatureRead
from pipelines.contracts.release import Columns, ViewPin
from serving import feast_values
from serving.entity_keys import EntityKey
from serving.feast_values import Value

# SQLite's oldest limit on bound parameters is 999.
_KEYS_PER_QUERY = 900


class ViewRead(msgspec.Struct):
    """One view as read for one request: what is logged, the columns for the model, what was wrong, the time it took."""

    logged: FeatureRead
    columns: Columns
    degraded: str
    took_us: int


class OnlineStore:
    """Reads `<project>_<view>` tables of Feast's SQLite online store; one read-only connection a thread."""

    def __init__(self, path: Path, project: str = "slipway") -> None:
        self.path = path
        self.project = project
        self._local = threading.local()

    def read(self, view: ViewPin, inputs: Columns, rows: int, event_us: int) -> ViewRead:
        """The view's features for every row of a request at `event_us`. Never raises for the store's condition."""
        started = perf_counter_ns()
        key = EntityKey(view.join_key_types)
        columns = [inputs[view.entity[name]] for name in key.names]
        keys: list[bytes | None] = []
        for row in range(rows):
            values = [column[row] for column in columns]
            # A null join key (no tail number) is a fact of the request, not a fault of the store.
            keys.append(None if any(v is None or v != v for v in values) else key.serialize(values))
        trouble: set[str] = set()
        found: dict[bytes, tuple[int, dict[str, Value]]] = {}
        try:
            found = self._fetch(view, sorted({k for k in keys if k is not None}))
        except (sqlite3.Error, OSError, ContractError, ValueError, IndexError, TypeError) as error:
            trouble.add(f"unreadable ({error})")
        held: list[int | None] = []
        per_row: list[dict[str, Value]] = []
        for one in keys:
            row_us, values_of_row = found.get(one, (None, {})) if one is not None else (None, {})
            if row_us is None:
                if one is not None and not trouble:
                    trouble.add("missing")
            elif row_us > event_us:
                trouble.add("from after the request")
                row_us, values_of_row = None, {}
            elif view.ttl_us and row_us < event_us - view.ttl_us:
                trouble.add("expired")
                row_us, values_of_row = None, {}
            held.append(row_us)
            per_row.append(values_of_row)
        values_by_feature = [[of_row.get(name) for of_row in per_row] for name in view.features]
        return ViewRead(
            FeatureRead(view.view, view.features, held, values_by_feature),
            {name: _column(values) for name, values in zip(view.features, values_by_feature, strict=True)},
            f"{view.view}: {', '.join(sorted(trouble))}" if trouble else "",
            (perf_counter_ns() - started) // 1000,
        )

    def _fetch(self, view: ViewPin, keys: list[bytes]) -> dict[bytes, tuple[int, dict[str, Value]]]:
        found: dict[bytes, tuple[int, dict[str, Value]]] = {}
        table = f"{self.project}_{view.view}".replace('"', '""')
        wanted = set(view.features)
        for first in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[first : first + _KEYS_PER_QUERY]
            rows = self._connection().execute(
                f'SELECT entity_key, feature_name, value, event_ts FROM "{table}"'
                f" WHERE entity_key IN ({','.join('?' * len(some))})",
                some,
            )
            for key, name, value, stamp in rows:
                if name in wanted:
                    held = found.get(key)
                    if held is None:
                        held = found[key] = (_stamp_us(stamp), {})
                    held[1][name] = feast_values.decode(value)
        return found

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        inode = self.path.stat().st_ino
        if connection is None or self._local.inode != inode:
            # A store that was rebuilt is another file under the same name.
            connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=0.05, check_same_thread=False)
            self._local.connection, self._local.inode = connection, inode
        return connection


def _stamp_us(stamp: int | float | str) -> int:
    """The event time of a row in microseconds.

    Feast 0.67 stores whole seconds: it takes the naive UTC moment for local time, so it is read back the same way
    (writer and reader run on one host). Other versions write ISO text in UTC.
    """
    if isinstance(stamp, str):
        return to_us(datetime.fromisoformat(stamp))
    return to_us(datetime.fromtimestamp(stamp))  # noqa: DTZ006 - local on purpose, see above


def _column(values: list[Value]) -> np.ndarray:
    """Numbers as float64 with NaN for null; text and mixtures as objects."""
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made
