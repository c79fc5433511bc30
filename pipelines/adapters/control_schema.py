"""Tables of the control database. The gateway reads `route` alone; every other table is private to orchestration.

Rules that must hold whoever writes are the database's: one running and one waiting rollout a model (partial unique
indexes), one champion a model (primary key), records that are only ever added to (triggers). SQLite and Postgres keep
the same ones. On Postgres a new route is also told to whoever listens (`NOTIFY`).
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    event,
    text,
)
from sqlalchemy import Text as _Text
from sqlalchemy.dialects import postgresql

from pipelines.contracts import routes

metadata = MetaData()

# Text is ordered by its bytes on both: a Postgres would else sort by the language of whoever made the database.
Text = _Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

rollout = Table(
    "rollout",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("slot", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("challenger", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Index("rollout_order", "model", "n", unique=True),
    Index(
        "one_running_rollout",
        "model",
        unique=True,
        sqlite_where=text("slot = 'running'"),
        postgresql_where=text("slot = 'running'"),
    ),
    Index(
        "one_waiting_rollout",
        "model",
        unique=True,
        sqlite_where=text("slot = 'waiting'"),
        postgresql_where=text("slot = 'waiting'"),
    ),
)

decision = Table(
    "decision",
    metadata,
    Column("model", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("rollout_id", Text),
    Column("kind", Text, nullable=False),
    Column("actions", Integer, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    PrimaryKeyConstraint("model", "n"),
    Index("decision_rollout", "rollout_id"),
)

decision_effect = Table(
    "decision_effect",
    metadata,
    Column("model", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("action", Integer, nullable=False),
    Column("done_us", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    PrimaryKeyConstraint("model", "n", "action"),
)

route = Table(
    "route",
    metadata,
    Column("model", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("model", "version"),
)

champion = Table(
    "champion",
    metadata,
    Column("model", Text, primary_key=True),
    Column("release", Text, nullable=False),
    Column("decision_id", Text, nullable=False),
)

release = Table(
    "release",
    metadata,
    Column("model", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("semver", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("mlflow_run", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("training_set", Text, nullable=False),
    Column("spec_digest", Text, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("model", "digest"),
    Index("release_semver", "model", "semver", unique=True),
)

evidence = Table(
    "evidence",
    metadata,
    Column("rollout_id", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("batch", BigInteger, nullable=False),
    Column("event_us", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("counts", Text, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("rollout_id", "part"),
)

collector_batch = Table(
    "collector_batch",
    metadata,
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("planned_us", BigInteger, nullable=False),
    Column("done_us", BigInteger),
)

collector_stream = Table(
    "collector_stream",
    metadata,
    Column("gateway", Text, nullable=False),
    Column("worker", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("segment", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("next_n", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("problem", Text, nullable=False),
    PrimaryKeyConstraint("gateway", "worker", "epoch"),
)

collector_offset = Table(
    "collector_offset",
    metadata,
    Column("source", Text, primary_key=True),
    Column("next", BigInteger, nullable=False),
)

collector_gap = Table(
    "collector_gap",
    metadata,
    Column("gateway", Text, nullable=False),
    Column("worker", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("first_n", BigInteger, nullable=False),
    Column("last_n", BigInteger, nullable=False),
    PrimaryKeyConstraint("gateway", "worker", "epoch", "first_n"),
)

collector_counter = Table(
    "collector_counter",
    metadata,
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("value", BigInteger, nullable=False),
    PrimaryKeyConstraint("scope", "name"),
)

collector_block = Table(
    "collector_block",
    metadata,
    Column("rollout_id", Text, nullable=False),
    Column("block", Integer, nullable=False),
    Column("last_rollout_seq", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("event_us", BigInteger, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("rollout_id", "block"),
)

override_seen = Table(
    "override_seen",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("rollout_id", Text),
    Column("document", Text, nullable=False),
    Column("observed", Integer),
    Column("settled", Integer),
)

asset_event = Table(
    "asset_event",
    metadata,
    Column("key", Text, primary_key=True),
    Column("uri", Text, nullable=False),
    Column("extra", Text, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
)

handled = Table(
    "handled",
    metadata,
    Column("consumer", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("consumer", "key"),
)

retrain = Table(
    "retrain",
    metadata,
    Column("model", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("as_of_us", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", Text, nullable=False),
    PrimaryKeyConstraint("model", "n"),
)

_APPEND_ONLY = (decision, decision_effect, route)

_POSTGRES_FUNCTIONS = (
    ("slipway_append_only", "RAISE EXCEPTION '%% is append-only', TG_TABLE_NAME"),
    ("slipway_tell_route", f"PERFORM pg_notify('{routes.CHANNEL}', NEW.model); RETURN NULL"),
)


def _refusals(table: Table) -> Iterator[tuple[str, str]]:
    """(dialect, statement) of the triggers that make a table append-only.

    Each database has a way round UPDATE and DELETE: SQLite's INSERT OR REPLACE fires neither, nor does TRUNCATE.
    """
    name = table.name
    refuse = f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
    same_key = " AND ".join(f"{column.name} = NEW.{column.name}" for column in table.primary_key)
    taken = f"WHEN EXISTS (SELECT 1 FROM {name} WHERE {same_key})"
    yield "sqlite", f"CREATE TRIGGER {name}_no_update BEFORE UPDATE ON {name} {refuse}"
    yield "sqlite", f"CREATE TRIGGER {name}_no_delete BEFORE DELETE ON {name} {refuse}"
    yield "sqlite", f"CREATE TRIGGER {name}_no_replace BEFORE INSERT ON {name} {taken} {refuse}"
    for verb, each in (("UPDATE", "ROW"), ("DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
        trigger = f"CREATE TRIGGER {name}_no_{verb.lower()} BEFORE {verb} ON {name}"
        yield "postgresql", f"{trigger} FOR EACH {each} EXECUTE FUNCTION slipway_append_only()"


for _function, _body in _POSTGRES_FUNCTIONS:
    _trigger = f"CREATE OR REPLACE FUNCTION {_function}() RETURNS trigger AS $$ BEGIN {_body}; END $$ LANGUAGE plpgsql"
    event.listen(metadata, "before_create", DDL(_trigger).execute_if(dialect="postgresql"))
for _table in _APPEND_ONLY:
    for _dialect, _trigger in _refusals(_table):
        event.listen(_table, "after_create", DDL(_trigger).execute_if(dialect=_dialect))
_TELL = "CREATE TRIGGER route_told AFTER INSERT ON route FOR EACH ROW EXECUTE FUNCTION slipway_tell_route()"
event.listen(route, "after_create", DDL(_TELL).execute_if(dialect="postgresql"))
