"""Routes in a Postgres control database: told by LISTEN/NOTIFY, with polling behind it.

The connection has a thread of its own: a server that hangs keeps nobody waiting, overrides least of all. All it needs
is SELECT on `route`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from pipelines.contracts import routes
from pipelines.contracts.errors import TransientError

_RETRY_S = 0.5
_NOTICE_STOP_S = 0.2
_SILENT_S = 5.0
"""A server that has not answered for so long is reported."""

_CONNECT: dict[str, Any] = {
    "autocommit": True,
    "connect_timeout": 3,
    "application_name": "slipway-gateway",
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "options": "-c default_transaction_read_only=on -c statement_timeout=5000",
}
_VERSIONS = "SELECT model, max(version) FROM route GROUP BY model"
_DOCUMENT = "SELECT document FROM route WHERE model = %s AND version = %s"


class PostgresRoutes:
    """`poll` takes what the thread has read since the last call."""

    def __init__(self, url: str, poll_s: float) -> None:
        self._url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._new: dict[str, str] | None = None
        self._error = ""
        self._answered = time.monotonic()
        self._looked = threading.Event()
        self._stopping = threading.Event()
        self._told: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="route-listen", daemon=True)

    def start(self, told: Callable[[], None]) -> None:
        """Begin to listen; `told` is called from the thread when there are new routes."""
        self._told = told
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Return when the first look has succeeded or failed, or after the timeout."""
        self._looked.wait(timeout_s)

    def stop(self) -> None:
        """End the thread; one that waits for a hung server ends with the process."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_NOTICE_STOP_S + 1.0)

    def poll(self) -> list[tuple[str, str]] | None:
        """(model, document) of newest routes that were not given out yet, or None. Raises TransientError."""
        with self._lock:
            new, self._new = self._new, None
            error, silent_s = self._error, time.monotonic() - self._answered
        if new is not None:
            return list(new.items())
        if not error and silent_s > _SILENT_S + self._poll_s:
            error = f"no answer for {silent_s:.0f} s"
        if error:
            raise TransientError("control database", got=error, expected="a server that answers")
        return None

    def _run(self) -> None:
        import psycopg

        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, **_CONNECT) as connection:
                    connection.execute(f"LISTEN {routes.CHANNEL}")
                    # A new connection takes nothing for known: the database behind it may be another one.
                    known: dict[str, int] = {}
                    while not self._stopping.is_set():
                        known = self._look(connection, known)
                        self._await_word(connection)
            except Exception as error:  # noqa: BLE001 - without this thread no route is ever obeyed again
                with self._lock:
                    self._error = str(error).strip() or type(error).__name__
                self._looked.set()
                self._stopping.wait(_RETRY_S)

    def _await_word(self, connection: Any) -> None:
        """Return when a route is told, or it is time to look all the same."""
        deadline = time.monotonic() + self._poll_s
        while not self._stopping.is_set() and (left_s := deadline - time.monotonic()) > 0:
            if list(connection.notifies(timeout=min(left_s, _NOTICE_STOP_S), stop_after=1)):
                return

    def _look(self, connection: Any, known: dict[str, int]) -> dict[str, int]:
        """Read the documents of versions that are not `known`; the versions there are now."""
        versions: dict[str, int] = dict(connection.execute(_VERSIONS).fetchall())
        changed = {key for key in versions.items() if known.get(key[0]) != key[1]}
        found = {key[0]: connection.execute(_DOCUMENT, key).fetchone()[0] for key in sorted(changed)}
        with self._lock:
            # The first look of a connection gives word even of nothing: the database can be read again.
            if found or not known or self._error:
                self._new = {**(self._new or {}), **found}
            self._error = ""
            self._answered = time.monotonic()
        self._looked.set()
        if found:
            self._told()
        return versions
