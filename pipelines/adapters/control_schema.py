"""Tables of the control database. The gateway reads `route` alone; every other table is private to orchestration.

Rules that must hold whoever writes are the database's: one running and one waiting rollout a model (partial unique
indexes), one champion a model (primary key), records that are only ever added to (triggers).
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    event,
    text,
)

metadata = MetaData()

rollout = Table(
    "rollout",
    metadata,
    Column("id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("n", Integer, nullable=False),
    Column("slot", String, nullable=False),
    Column("status", String, nullable=False),
    Column("challenger", String, nullable=False),
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
    Column("model", String, nullable=False),
    Column("n", Integer, nullable=False),
    Column("rollout_id", String),
    Column("kind", String, nullable=False),
    Column("actions", Integer, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("body", Text, nullable=False),
    PrimaryKeyConstraint("model", "n"),
    Index("decision_rollout", "rollout_id"),
)

decision_effect = Table(
    "decision_effect",
    metadata,
    Column("model", String, nullable=False),
    Column("n", Integer, nullable=False),
    Column("action", Integer, nullable=False),
    Column("done_us", BigInteger, nullable=False),
    Column("detail", Text, nullable=False),
    PrimaryKeyConstraint("model", "n", "action"),
)

route = Table(
    "route",
    metadata,
    Column("model", String, nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("model", "version"),
)

champion = Table(
    "champion",
    metadata,
    Column("model", String, primary_key=True),
    Column("release", String, nullable=False),
    Column("decision_id", String, nullable=False),
)

release = Table(
    "release",
    metadata,
    Column("model", String, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("semver", String, nullable=False),
    Column("status", String, nullable=False),
    Column("mlflow_run", String, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("training_set", String, nullable=False),
    Column("spec_digest", String, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("model", "digest"),
    Index("release_semver", "model", "semver", unique=True),
)

evidence = Table(
    "evidence",
    metadata,
    Column("rollout_id", String, nullable=False),
    Column("part", String, nullable=False),
    Column("batch", BigInteger, nullable=False),
    Column("event_us", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("counts", Text, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("rollout_id", "part"),
)

collector_batch = Table(
    "collector_batch",
    metadata,
    Column("n", BigInteger, primary_key=True, autoincrement=False),
    Column("status", String, nullable=False),
    Column("plan", Text, nullable=False),
    Column("planned_us", BigInteger, nullable=False),
    Column("done_us", BigInteger),
)

collector_stream = Table(
    "collector_stream",
    metadata,
    Column("gateway", String, nullable=False),
    Column("worker", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("segment", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("next_n", BigInteger, nullable=False),
    Column("repeats", BigInteger, nullable=False),
    Column("problem", Text, nullable=False),
    PrimaryKeyConstraint("gateway", "worker", "epoch"),
)

collector_gap = Table(
    "collector_gap",
    metadata,
    Column("gateway", String, nullable=False),
    Column("worker", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("first_n", BigInteger, nullable=False),
    Column("last_n", BigInteger, nullable=False),
    PrimaryKeyConstraint("gateway", "worker", "epoch", "first_n"),
)

collector_counter = Table(
    "collector_counter",
    metadata,
    Column("scope", String, nullable=False),
    Column("name", String, nullable=False),
    Column("value", BigInteger, nullable=False),
    PrimaryKeyConstraint("scope", "name"),
)

collector_block = Table(
    "collector_block",
    metadata,
    Column("rollout_id", String, nullable=False),
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
    Column("event_id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("rollout_id", String),
    Column("document", Text, nullable=False),
    Column("observed", Integer),
    Column("settled", Integer),
)

anchor = Table(
    "anchor",
    metadata,
    Column("day", String(10), nullable=False),
    Column("model", String, nullable=False),
    Column("n", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    PrimaryKeyConstraint("day", "model"),
)

asset_event = Table(
    "asset_event",
    metadata,
    Column("key", String, primary_key=True),
    Column("uri", String, nullable=False),
    Column("extra", Text, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
)

handled = Table(
    "handled",
    metadata,
    Column("consumer", String, nullable=False),
    Column("key", String, nullable=False),
    Column("wall_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("consumer", "key"),
)

retrain = Table(
    "retrain",
    metadata,
    Column("model", String, nullable=False),
    Column("n", Integer, nullable=False),
    Column("as_of_us", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("status", String, nullable=False),
    PrimaryKeyConstraint("model", "n"),
)

_APPEND_ONLY = (decision, decision_effect, route, anchor)

_POSTGRES_REFUSE = DDL(
    "CREATE OR REPLACE FUNCTION slipway_append_only() RETURNS trigger AS $$ "
    "BEGIN RAISE EXCEPTION '%% is append-only', TG_TABLE_NAME; END $$ LANGUAGE plpgsql"
)
event.listen(metadata, "before_create", _POSTGRES_REFUSE.execute_if(dialect="postgresql"))
for _table in _APPEND_ONLY:
    for _verb in ("UPDATE", "DELETE"):
        _name = f"{_table.name}_no_{_verb.lower()}"
        event.listen(
            _table,
            "after_create",
            DDL(
                f"CREATE TRIGGER {_name} BEFORE {_verb} ON {_table.name} "
                f"BEGIN SELECT RAISE(ABORT, '{_table.name} is append-only'); END"
            ).execute_if(dialect="sqlite"),
        )
        event.listen(
            _table,
            "after_create",
            DDL(
                f"CREATE TRIGGER {_name} BEFORE {_verb} ON {_table.name} "
                "FOR EACH ROW EXECUTE FUNCTION slipway_append_only()"
            ).execute_if(dialect="postgresql"),
        )
