"""The decision record in the control database: one hash chain a model, and the global record of its heads by day."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb
from pipelines.contracts.clocks import wall_us
from pipelines.rollout import actions as acts
from pipelines.rollout import record
from pipelines.rollout.state import Decision, Rollout, apply

ANCHOR = "slipway-anchor/1"


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
        """Write the newest hash of every model's record into the global one, for `day` (ISO date), once a day.

        The global record (`record.ANCHORS`) is a chain like the models' own. Returns how many hashes were written.
        """
        decision = schema.decision
        newest = sa.select(decision.c.model, sa.func.max(decision.c.n)).group_by(decision.c.model)
        query = sa.select(decision.c.model, decision.c.n, decision.c.hash).where(
            sa.tuple_(decision.c.model, decision.c.n).in_(newest), decision.c.model != record.ANCHORS
        )
        with self.db.write() as connection:
            previous = head(connection, record.ANCHORS)
            heads = {model: [n, hash_] for model, n, hash_ in connection.execute(query)}
            if not heads or (previous is not None and msgspec.json.decode(previous.body)["day"] >= day):
                return 0
            line = record.entry(record.ANCHORS, previous, {"schema": ANCHOR, "day": day, "heads": heads})
            insert_entry(connection, line, None, "anchored", 0, wall_us())
        return len(heads)

    def anchors(self, model: str) -> dict[int, str]:
        """Anchored hashes of a model's record by entry number."""
        days = (msgspec.json.decode(line.body)["heads"] for line in self.entries(record.ANCHORS))
        return {n: hash_ for heads in days if model in heads for n, hash_ in [heads[model]]}


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
