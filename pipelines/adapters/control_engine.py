"""What SQLite and Postgres do differently under the control database: connecting, locking, failing.

On both, writers take turns from the first statement of their transaction on (`BEGIN IMMEDIATE`; a transaction-scoped
advisory lock), so that what one has read cannot change before it commits. Readers see one snapshot and wait for nobody.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, OperationalError

from pipelines.contracts.errors import TerminalError, TransientError

BUSY_MS = 15_000
"""How long a writer waits for the writers before it."""

# The two halves of an advisory lock's key: ours, and what is locked (0: the right to write).
_LOCKS = 0x511
_WRITE = 0

_POSTGRES_CONNECT = {
    "connect_timeout": 5,
    "application_name": "slipway",
    # A server that has gone without a word is noticed in seconds, not by the kernel's patience of many minutes.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # No transaction of ours is long: one that is left open must not hold the others' right to write.
    "options": "-c idle_in_transaction_session_timeout=60000",
}

_WRONG_ADDRESS = ("password authentication failed", "no pg_hba.conf entry", 'database "', 'role "')


def open_engine(url: str, *, durable: bool) -> sa.Engine:
    """An engine for `sqlite:///path` or `postgresql://user:password@host:port/database` (read by psycopg 3)."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
        return sa.create_engine(parsed, pool_size=4, max_overflow=8, pool_pre_ping=True, connect_args=_POSTGRES_CONNECT)
    if parsed.get_backend_name() != "sqlite":
        raise TerminalError(
            "control database", got=parsed.get_backend_name(), expected="sqlite:/// or postgresql:// in the URL"
        )
    engine = sa.create_engine(parsed, pool_size=4, max_overflow=8)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    _sqlite_transactions(engine, "FULL" if durable else "NORMAL")
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One consistent snapshot, whatever others commit meanwhile."""
    with _transient_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that alone may write; commits, or rolls back on an error."""
    with (
        _transient_errors(engine),
        engine.connect().execution_options(slipway_write=True) as connection,
        connection.begin(),
    ):
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {BUSY_MS}")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCKS, _WRITE)))
        yield connection


@contextmanager
def named_lock(engine: sa.Engine, name: str) -> Iterator[Callable[[], bool]]:
    """Gives a call that tries to take the lock of this name; it is released at the end, or with its holder's death."""
    if engine.dialect.name == "sqlite":
        path = Path(str(engine.url.database)).with_name(f".{name}.lock")
        with path.open("a") as handle:
            yield lambda: _flock(handle)
        return
    take = sa.select(sa.func.pg_try_advisory_lock(_LOCKS, sa.func.hashtext(name)))

    def try_lock() -> bool:
        with _transient_errors(engine):
            return bool(connection.execute(take).scalar())

    with _transient_errors(engine):
        connection = engine.connect()
    try:
        # Without a transaction: one that stays open while somebody works would keep the server from cleaning up.
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        yield try_lock
    finally:
        with suppress(DBAPIError):  # a connection that is gone has released it
            connection.execute(sa.select(sa.func.pg_advisory_unlock_all()))
        connection.close()


def _flock(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _transient_errors(engine: sa.Engine) -> Iterator[None]:
    """A lock that is not to be had and a server that is away are told apart from faults that no retry mends."""
    try:
        yield
    except OperationalError as error:
        got = str(error.orig).strip()
        if any(sign in got for sign in _WRONG_ADDRESS):
            hint = "Look at SLIPWAY_CONTROL_URL."
            raise TerminalError("control database", got=got, expected="to be let in", hint=hint) from error
        if "lock" in got or "busy" in got:
            hint = "Another writer holds it; try again."
            raise TransientError("control database", got=got, expected="the write lock", hint=hint) from error
        if engine.dialect.name == "postgresql":
            raise TransientError("control database", got=got, expected="a server that answers") from error
        raise


def _sqlite_transactions(engine: sa.Engine, synchronous: str) -> None:
    """Let SQLAlchemy begin transactions itself: the driver's own begin is late and cannot be IMMEDIATE."""

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _began(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("slipway_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
