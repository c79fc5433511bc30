"""Where routes come from: the control database, read-only, and the last good ones on this host's disk."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path

import msgspec

from pipelines.contracts import routes
from pipelines.contracts.errors import ContractError
from pipelines.contracts.routes import Route

_log = logging.getLogger("slipway.routes")

_LATEST = "SELECT model, MAX(version), document FROM route GROUP BY model"


class RouteSource:
    """Reads the latest route of every model. The database may be absent, locked or without the table at any moment.

    Used by one thread. Only SQLite URLs are read here; with another control database the last good routes stand.
    """

    def __init__(self, control_url: str, last_good: Path) -> None:
        self._path = Path(control_url.removeprefix("sqlite:///")) if control_url.startswith("sqlite:///") else None
        if self._path is None:
            _log.error(
                "control database %s cannot be read by the gateway: only sqlite:/// can",
                control_url.split(":", maxsplit=1)[0],
            )
        self._last_good = last_good
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._seen = -1
        self.error = ""

    def last_good(self) -> dict[str, Route]:
        """The routes this gateway last followed, from its own disk; empty when there are none."""
        try:
            documents = msgspec.json.decode(self._last_good.read_bytes(), type=dict[str, msgspec.Raw])
            return {model: routes.decode(bytes(document)) for model, document in documents.items()}
        except FileNotFoundError:
            return {}
        except (msgspec.MsgspecError, ContractError, OSError) as error:
            _log.error("last good routes in %s are unreadable: %s", self._last_good, error)
            return {}

    def keep(self, good: dict[str, Route]) -> None:
        """Write the routes now followed to this host's disk (atomic)."""
        documents = {model: msgspec.Raw(routes.encode(route).encode()) for model, route in sorted(good.items())}
        self._last_good.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._last_good.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(documents))
        temporary.replace(self._last_good)

    def poll(self) -> dict[str, Route] | None:
        """The latest route of every model, or None when nothing changed or the database cannot be read.

        `error` then says why. A document that does not follow the contract is skipped: its model keeps its route.
        """
        if self._path is None:
            return None
        try:
            connection = self._connect(self._path)
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version == self._seen:
                return None
            rows = connection.execute(_LATEST).fetchall()
        except (sqlite3.Error, OSError) as error:
            if self.error != str(error):
                _log.warning("control database unreadable, last good routes stand: %s", error)
            self.error = str(error)
            self._close()
            return None
        self._seen = version
        self.error = ""
        found: dict[str, Route] = {}
        for model, _, document in rows:
            try:
                found[model] = routes.decode(document)
            except ContractError as error:
                _log.error("route of %s refused: %s", model, error)
                self.error = f"{model}: {error}"
        return found

    def _connect(self, path: Path) -> sqlite3.Connection:
        inode = path.stat().st_ino
        if self._connection is None or inode != self._inode:
            self._close()
            self._connection = sqlite3.connect(
                f"file:{path}?mode=ro", uri=True, timeout=0.1, isolation_level=None, check_same_thread=False
            )
            self._inode = inode
        return self._connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._seen = -1
