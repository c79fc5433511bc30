"""Actions of recorded decisions, done and confirmed in the control database (`executor.EffectStore`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb, insert_route
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import TerminalError
from pipelines.rollout import actions as acts
from pipelines.rollout import record
from pipelines.rollout.executor import Effect, Pending, kind


class EffectTables:
    """Effects of a model's decisions."""

    def __init__(self, db: ControlDb) -> None:
        self.db = db

    def effects(self, model: str) -> dict[tuple[int, int], Effect]:
        """Confirmed effects of a model's decisions, by (decision number, action position)."""
        table = schema.decision_effect
        with self.db.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.model == model)).mappings().all()
        return {
            (row["n"], row["action"]): Effect(
                decision_id=record.decision_id(model, row["n"]),
                action=row["action"],
                kind=row["detail"].partition(":")[0],
                done=True,
                detail=row["detail"],
                done_us=row["done_us"],
            )
            for row in rows
        }

    def unfinished_models(self) -> list[str]:
        """Models that have decisions with unconfirmed actions."""
        decision, effect = schema.decision, schema.decision_effect
        ordered = sa.select(decision.c.model, sa.func.sum(decision.c.actions).label("n")).group_by(decision.c.model)
        done = sa.select(effect.c.model, sa.func.count().label("n")).group_by(effect.c.model)
        with self.db.read() as connection:
            confirmed = {row.model: row.n for row in connection.execute(done)}
            return sorted(row.model for row in connection.execute(ordered) if row.n > confirmed.get(row.model, 0))

    def pending(self, model: str) -> Sequence[Pending]:
        """The model's decisions with unconfirmed actions, in order."""
        decision, effect = schema.decision, schema.decision_effect
        confirmed = (
            sa.select(sa.func.count())
            .select_from(effect)
            .where(effect.c.model == decision.c.model, effect.c.n == decision.c.n)
            .scalar_subquery()
        )
        query = (
            sa.select(decision.c.n, decision.c.body)
            .where(decision.c.model == model, decision.c.actions > confirmed)
            .order_by(decision.c.n)
        )
        with self.db.read() as connection:
            lines = connection.execute(query).all()
            asked = sa.select(effect.c.n, effect.c.action).where(effect.c.model == model)
            done = {(n, action) for n, action in connection.execute(asked)} if lines else set()
        found = []
        for n, body in lines:
            planned = acts.from_builtins(msgspec.json.decode(body)["actions"])
            still = tuple(index for index in range(len(planned)) if (n, index) not in done)
            found.append(Pending(model=model, n=n, actions=planned, open=still))
        return found

    def do_control(self, model: str, n: int, action: int, what: acts.Action) -> Effect:
        """Do and confirm one control action in one transaction; the confirmed effect when it was done before."""
        with self.db.write() as connection:
            if (before := _effect(connection, model, n, action)) is not None:
                return before
            of_model = schema.route.c.model == model
            match what:
                case acts.SetRoute(route=route):
                    written = insert_route(connection, route)
                    detail = f"route version {written.version}"
                case acts.Freeze(stage=stage):
                    version = connection.execute(
                        sa.select(sa.func.max(schema.route.c.version)).where(of_model)
                    ).scalar()
                    detail = f"route version {version} stays, in {stage}"
                case acts.SetChampion(release=release):
                    _put_champion(connection, model, release, record.decision_id(model, n))
                    detail = f"champion {release[:12]}"
                case _:
                    raise TerminalError(f"action {kind(what)}", got="a mirror", expected="a control action")
            return _confirm(connection, model, n, action, what, detail)

    @contextmanager
    def mirror_turn(self, model: str, where: str) -> Iterator[bool]:
        """Gives one process at a time the turn at one mirror of a model; False when it is not to be had soon."""
        with self.db.turn(f"mirror-{where}-{model}") as is_mine:
            yield is_mine

    def confirm(self, model: str, n: int, action: int, what: acts.Action, detail: str) -> Effect:
        """Write down that a mirror's action is done."""
        with self.db.write() as connection:
            return _effect(connection, model, n, action) or _confirm(connection, model, n, action, what, detail)


def _put_champion(connection: sa.Connection, model: str, release: str, decision: str) -> None:
    table = schema.champion
    values = {"release": release, "decision_id": decision}
    if connection.execute(sa.update(table).where(table.c.model == model).values(**values)).rowcount == 0:
        connection.execute(sa.insert(table).values(model=model, **values))


def _effect(connection: sa.Connection, model: str, n: int, action: int) -> Effect | None:
    table = schema.decision_effect
    row = (
        connection.execute(sa.select(table).where(table.c.model == model, table.c.n == n, table.c.action == action))
        .mappings()
        .first()
    )
    if row is None:
        return None
    return Effect(
        decision_id=record.decision_id(model, n),
        action=action,
        kind=row["detail"].partition(":")[0],
        done=True,
        detail=row["detail"],
        done_us=row["done_us"],
    )


def _confirm(connection: sa.Connection, model: str, n: int, action: int, what: acts.Action, detail: str) -> Effect:
    now, text = wall_us(), f"{kind(what)}: {detail}"
    connection.execute(
        sa.insert(schema.decision_effect).values(model=model, n=n, action=action, done_us=now, detail=text)
    )
    return Effect(
        decision_id=record.decision_id(model, n), action=action, kind=kind(what), done=True, detail=text, done_us=now
    )
