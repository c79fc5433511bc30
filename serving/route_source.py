"""Where routes come from: the control database, read-only, and the last good ones on this host's disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from pipelines.contracts import durable_files, routes
from pipelines.contracts.errors import ContractError, TerminalError, TransientError
from pipelines.contracts.routes import Route
from serving.postgres_routes import PostgresRoutes
from serving.sqlite_routes import SqliteRoutes

_log = logging.getLogger("slipway.routes")

_FIRST_LOOK_S = 3.0

State = Literal["ok", "unreadable", "a route is refused"]


class RouteReader(Protocol):
    """One kind of control database. Used by one thread."""

    def start(self, told: Callable[[], None]) -> None:
        """Begin to look; `told` is called, from any thread, when a new route is known to be there."""

    def wait(self, timeout_s: float) -> None:
        """Return when the first look has succeeded or failed, or after the timeout."""

    def poll(self) -> list[tuple[str, str]] | None:
        """(model, document) of the newest routes, or None when nothing has changed. Raises TransientError."""

    def stop(self) -> None:
        """End what `start` began."""


def reader_of(control_url: str, poll_s: float) -> RouteReader:
    """The reader of a control database's URL. Raises TerminalError for one that is neither SQLite nor Postgres."""
    if control_url.startswith("sqlite:///"):
        return SqliteRoutes(Path(control_url.removeprefix("sqlite:///")))
    if control_url.startswith("postgres"):
        return PostgresRoutes(control_url, poll_s)
    got = control_url.partition(":")[0]
    raise TerminalError("SLIPWAY_CONTROL_URL", got=f"{got}:", expected="sqlite:/// or postgresql://")


class RouteSource:
    """Follows the latest route of every model. The database may be absent, locked, hung or without the table at any
    moment: then `error` says so, and the routes that are known stand. `state` says it to everyone: no words of the
    database's own, which may name hosts and users.
    """

    def __init__(self, reader: RouteReader, last_good: Path) -> None:
        self._reader = reader
        self._last_good = last_good
        self.error = ""
        self.state: State = "ok"
        self.read_at = time.monotonic()
        """When the database was last read, or this was made."""

    def start(self, told: Callable[[], None]) -> None:
        """Begin to look, and wait (bounded) for what there is now."""
        self._reader.start(told)
        self._reader.wait(_FIRST_LOOK_S)

    def stop(self) -> None:
        """End the reader."""
        self._reader.stop()

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
        """Write the routes now followed to this host's disk (atomic; there after a loss of power)."""
        documents = {model: msgspec.Raw(routes.encode(route).encode()) for model, route in sorted(good.items())}
        self._last_good.parent.mkdir(parents=True, exist_ok=True)
        durable_files.write(self._last_good, msgspec.json.encode(documents))

    def poll(self) -> dict[str, Route] | None:
        """The latest route of every model, or None when nothing changed or the database cannot be read.

        `error` then says why. A document that does not follow the contract is skipped: its model keeps its route.
        """
        try:
            rows = self._reader.poll()
        except TransientError as error:
            if self.error != str(error):
                _log.warning("control database unreadable, last good routes stand: %s", error)
            self.error, self.state = str(error), "unreadable"
            return None
        self.read_at = time.monotonic()
        if rows is None:
            return None
        self.error, self.state = "", "ok"
        found: dict[str, Route] = {}
        for model, document in rows:
            try:
                found[model] = routes.decode(document)
            except ContractError as error:
                _log.error("route of %s refused: %s", model, error)
                self.error, self.state = f"{model}: {error}", "a route is refused"
        return found
