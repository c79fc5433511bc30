"""The control database: transactions, and the small tables that need no store of their own.

SQLite in WAL mode on one host, or Postgres (`control_engine.py`). Transactions are short and do no I/O of their own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_engine import named_lock, open_engine, reading, writing
from pipelines.contracts import routes
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import NotFoundError
from pipelines.registry.versions import parse
from pipelines.settings import Settings


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """A registered release. `status`: registered, refused, rollout, champion, retired, withdrawn."""

    model: str
    digest: str
    semver: str
    status: str = "registered"
    mlflow_run: str = ""
    metrics: dict[str, Any] = {}
    training_set: str = ""
    spec_digest: str = ""
    created_us: int = 0


class RetrainRow(msgspec.Struct, frozen=True, kw_only=True):
    """One retraining that monitoring has asked for. `n` counts from 1 per model."""

    model: str
    n: int
    as_of_us: int
    reason: str
    status: str


class ControlDb:
    """One installation's control database, opened by URL; the schema is made when it is missing."""

    def __init__(self, url: str, *, durable: bool = False) -> None:
        self.url = url
        self.engine = open_engine(url, durable=durable)
        with self.write() as connection:
            schema.metadata.create_all(connection)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One consistent snapshot."""
        with reading(self.engine) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that alone may write, from its first statement on; commits, or rolls back on an error."""
        with writing(self.engine) as connection:
            yield connection

    @contextmanager
    def turn(self, name: str, *, patience_s: float = 10.0) -> Iterator[bool]:
        """A lock by name among the processes of the installation, released when its holder dies.

        Yields False when it was not to be had within `patience_s`. Holds no database lock.
        """
        deadline = time.monotonic() + patience_s
        with named_lock(self.engine, name) as try_lock:
            is_mine = try_lock()
            while not is_mine and time.monotonic() < deadline:
                time.sleep(0.05)  # a lock that is tried for wakes nobody
                is_mine = try_lock()
            yield is_mine

    # --- routes -------------------------------------------------------------------------------------------------
    def route(self, model: str) -> routes.Route | None:
        """The newest route of a model."""
        table = schema.route
        query = sa.select(table.c.document).where(table.c.model == model).order_by(table.c.version.desc()).limit(1)
        with self.read() as connection:
            document = connection.execute(query).scalar()
        return routes.decode(document) if document is not None else None

    def set_route(self, route: routes.Route) -> routes.Route:
        """Write a route as its model's newest version and return it with that version. For tests and first set-ups:
        a rollout's routes are written by its executor, with their decision.
        """
        with self.write() as connection:
            return insert_route(connection, route)

    def champion(self, model: str) -> str | None:
        """The digest of the model's champion."""
        with self.read() as connection:
            return connection.execute(
                sa.select(schema.champion.c.release).where(schema.champion.c.model == model)
            ).scalar()

    # --- releases -----------------------------------------------------------------------------------------------
    def put_release(self, row: ReleaseRow) -> None:
        """Insert a release, or update the one with its digest."""
        table = schema.release
        values = msgspec.structs.asdict(row) | {"metrics": msgspec.json.encode(row.metrics, order="sorted").decode()}
        with self.write() as connection:
            key = (table.c.model == row.model) & (table.c.digest == row.digest)
            if connection.execute(sa.update(table).where(key).values(**values)).rowcount == 0:
                connection.execute(sa.insert(table).values(**values))

    def set_release_status(self, model: str, digest: str, status: str) -> None:
        """Change a release's status; a release that was never registered is left alone."""
        table = schema.release
        with self.write() as connection:
            connection.execute(
                sa.update(table).where(table.c.model == model, table.c.digest == digest).values(status=status)
            )

    def releases(self, model: str | None = None) -> list[ReleaseRow]:
        """Releases, oldest first: by the event time they were made as of, and of equal ones by version."""
        table = schema.release
        query = sa.select(table).order_by(table.c.model)
        if model is not None:
            query = query.where(table.c.model == model)
        with self.read() as connection:
            rows = connection.execute(query).mappings().all()
        found = [ReleaseRow(**(dict(row) | {"metrics": msgspec.json.decode(row["metrics"])})) for row in rows]
        return sorted(found, key=lambda row: (row.created_us, parse(row.semver)))

    def release(self, name: str, model: str | None = None) -> ReleaseRow:
        """The release with this digest, a unique prefix of it (6 characters or more), or this semantic version.

        Raises NotFoundError naming the releases there are.
        """
        rows = self.releases(model)
        found = [row for row in rows if name in (row.digest, row.semver)] or [
            row for row in rows if len(name) >= 6 and row.digest.startswith(name)
        ]
        if len(found) != 1:
            near = [f"{row.model} {row.semver} {row.digest[:12]}" for row in rows]
            got, expected = f"{name} ({len(found)} matches)", near or "a registered release"
            hint = "`slipway release list` shows all; a training run registers one."
            raise NotFoundError("release", got=got, expected=expected, hint=hint)
        return found[0]

    # --- retraining, assets ---------------------------------------------------------------------------------------
    def add_retrain(self, model: str, as_of_us: int, reason: str, status: str = "asked") -> RetrainRow:
        """Write down that a retraining is asked for. Asking again for the same `as_of_us` returns the first row."""
        table = schema.retrain
        with self.write() as connection:
            rows = connection.execute(sa.select(table).where(table.c.model == model)).mappings().all()
            for row in rows:
                if row["as_of_us"] == as_of_us:
                    return RetrainRow(**row)
            made = RetrainRow(model=model, n=len(rows) + 1, as_of_us=as_of_us, reason=reason, status=status)
            connection.execute(sa.insert(table).values(**msgspec.structs.asdict(made)))
        return made

    def retrains(self, model: str) -> list[RetrainRow]:
        """A model's retrainings in order."""
        table = schema.retrain
        with self.read() as connection:
            rows = (
                connection.execute(sa.select(table).where(table.c.model == model).order_by(table.c.n)).mappings().all()
            )
        return [RetrainRow(**row) for row in rows]

    def set_retrain_status(self, model: str, n: int, status: str) -> None:
        """Change one retraining's status."""
        table = schema.retrain
        with self.write() as connection:
            connection.execute(sa.update(table).where(table.c.model == model, table.c.n == n).values(status=status))

    def claim(self, consumer: str, key: str) -> bool:
        """Take one event of an asset for one consumer: True for the first caller alone."""
        try:
            with self.write() as connection:
                connection.execute(sa.insert(schema.handled).values(consumer=consumer, key=key, wall_us=wall_us()))
        except IntegrityError:
            return False
        return True

    def asset_events(self, uri: str, consumer: str | None = None) -> list[dict[str, Any]]:
        """Events of an asset as `{key, uri, extra, wall_us}`, oldest first; for a `consumer`, those not claimed yet."""
        table, taken = schema.asset_event, schema.handled
        query = sa.select(table).where(table.c.uri == uri).order_by(table.c.wall_us, table.c.key)
        if consumer is not None:
            claimed = sa.select(taken.c.key).where(taken.c.consumer == consumer)
            query = query.where(table.c.key.not_in(claimed))
        with self.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [dict(row) | {"extra": msgspec.json.decode(row["extra"])} for row in rows]

    def emit_asset(self, key: str, uri: str, extra: Mapping[str, Any]) -> bool:
        """Write one event of an asset; an event with the same key is written once. Returns whether it was new."""
        try:
            with self.write() as connection:
                connection.execute(
                    sa.insert(schema.asset_event).values(
                        key=key, uri=uri, extra=msgspec.json.encode(dict(extra)).decode(), wall_us=wall_us()
                    )
                )
        except IntegrityError:
            return False
        return True


def insert_route(connection: sa.Connection, route: routes.Route) -> routes.Route:
    """Write `route` as the next version of its model inside the caller's transaction; returns it with its version."""
    table = schema.route
    newest = connection.execute(sa.select(sa.func.max(table.c.version)).where(table.c.model == route.model)).scalar()
    numbered = msgspec.structs.replace(route, version=(newest or 0) + 1)
    connection.execute(
        sa.insert(table).values(model=route.model, version=numbered.version, document=routes.encode(numbered))
    )
    return numbered


def control_db(settings: Settings) -> ControlDb:
    """The installation's control database, opened once a process (a forked child opens its own)."""
    return _opened(settings.control, settings.durability == "power", os.getpid())


@cache
def _opened(url: str, durable: bool, _pid: int) -> ControlDb:
    return ControlDb(url, durable=durable)
