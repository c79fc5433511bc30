"""The decision record in the control database: one hash chain a model, and the global record of its heads by day."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb
from pipelines.rollout import actions as acts
from pipelines.rollout import record
from pipelines.rollout.state import Decision, Rollout, apply


class RecordTables:
    """Reads the record, and anchors it."""

    def __init__(self, db: ControlDb) -> None:
        self.db = db

    def entries(self, model: str, rollout_id: str | None = None) -> list[record.Entry]:
        """The model's record in order, or the part of it about one rollout."""
        table = schema.decision
        query = sa.select(table).where(table.c.model == model).order_by(table.c.n)
        if rollout_id is not None:
            query = query.where(table.c.rollout_id == rollout_id)
        with self.db.read() as connection:
            return [entry_of(row) for row in connection.execute(query).mappings()]

    def recorded_models(self) -> list[str]:
        """Every model that has a record."""
        with self.db.read() as connection:
            return list(connection.execute(sa.select(schema.decision.c.model).distinct().order_by("model")).scalars())

    def anchor(self, day: str) -> int:
        """Write each model's newest hash into the global record for `day` (ISO date), once a day; returns how many."""
        table, decision, made = schema.anchor, schema.decision, 0
        with self.db.write() as connection:
            heads = connection.execute(sa.select(decision.c.model, sa.func.max(decision.c.n)).group_by("model")).all()
            there = set(connection.execute(sa.select(table.c.model).where(table.c.day == day)).scalars())
            for model, n in heads:
                if model not in there:
                    newest = connection.execute(
                        sa.select(decision.c.hash).where(decision.c.model == model, decision.c.n == n)
                    ).scalar_one()
                    connection.execute(sa.insert(table).values(day=day, model=model, n=n, hash=newest))
                    made += 1
        return made

    def anchors(self, model: str) -> dict[int, str]:
        """Anchored hashes of a model's record by entry number."""
        table = schema.anchor
        with self.db.read() as connection:
            rows = connection.execute(sa.select(table.c.n, table.c.hash).where(table.c.model == model)).all()
        return dict(row.tuple() for row in rows)


def decision_of(line: record.Entry) -> Decision | None:
    """The decision in a recorded entry; None for an observed override."""
    body = msgspec.json.decode(line.body)
    return msgspec.convert(body["decision"], Decision) if "decision" in body else None


def rollout_of(lines: Sequence[record.Entry]) -> Rollout | None:
    """The rollout as its recorded entries leave it; None when it has not begun, or began under an older version."""
    state: Rollout | None = None
    for line in lines:
        body = msgspec.json.decode(line.body)
        if "rollout" in body:
            state = msgspec.convert(body["rollout"], Rollout)
        if state is not None and "decision" in body:
            state = apply(state, msgspec.convert(body["decision"], Decision), line.n)
    return state


def actions_of(line: record.Entry) -> tuple[acts.Action, ...]:
    """The actions that a recorded entry ordered."""
    return acts.from_builtins(msgspec.json.decode(line.body).get("actions", []))


def head(connection: sa.Connection, model: str) -> record.Entry | None:
    """The newest entry of a model's record."""
    table = schema.decision
    query = sa.select(table).where(table.c.model == model).order_by(table.c.n.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return entry_of(row) if row is not None else None


def entry_of(row: sa.RowMapping) -> record.Entry:
    """The entry in a row of table `decision`."""
    return record.Entry(model=row["model"], n=row["n"], prev_hash=row["prev_hash"], hash=row["hash"], body=row["body"])


def insert_entry(
    connection: sa.Connection, line: record.Entry, rollout_id: str | None, word: str, actions: int, at_us: int
) -> None:
    """Append an entry inside the caller's transaction; `word` and `at_us` are what is looked for without its body."""
    connection.execute(
        sa.insert(schema.decision).values(
            model=line.model,
            n=line.n,
            rollout_id=rollout_id,
            kind=word,
            actions=actions,
            wall_us=at_us,
            prev_hash=line.prev_hash,
            hash=line.hash,
            body=line.body,
        )
    )
