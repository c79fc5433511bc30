"""Rollouts, their evidence and overrides in the control database; decisions are taken down with what they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb
from pipelines.adapters.effect_tables import EffectTables
from pipelines.adapters.record_tables import RecordTables, decision_of, head, insert_entry
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import ContractError, NotFoundError, StaleDecisionError, TerminalError
from pipelines.rollout import actions as acts
from pipelines.rollout import record
from pipelines.rollout.plan_actions import plan_actions
from pipelines.rollout.state import Decision, Rollout, apply
from pipelines.stats.evidence import Evidence, digest_of

_decode_rollout = msgspec.json.Decoder(Rollout).decode
BODY = "slipway-decision/1"


class EvidenceRow(msgspec.Struct, frozen=True, kw_only=True):
    """Stored evidence of one rollout. `part` is `live` (the collector's) or `backtest`; it reaches to `event_us`."""

    rollout_id: str
    part: str
    batch: int
    event_us: int
    digest: str
    counts: dict[str, Any]
    document: str

    @staticmethod
    def of(
        rollout_id: str, part: str, batch: int, evidence: Evidence, *, event_us: int | None = None,
        counts: dict[str, Any] | None = None,
    ) -> EvidenceRow:  # fmt: skip
        """`evidence` as it is stored, serialised once; it reaches to its own last event when no time is given."""
        document = evidence.to_json()
        return EvidenceRow(
            rollout_id=rollout_id,
            part=part,
            batch=batch,
            event_us=(evidence.last_us or 0) if event_us is None else event_us,
            digest=digest_of(document),
            counts=counts or {},
            document=document.decode(),
        )


class OverrideRow(msgspec.Struct, frozen=True, kw_only=True):
    """An override of the gateway. `observed`, `settled`: the numbers of the entries that chained and handled it."""

    event_id: str
    model: str
    rollout_id: str | None
    document: str
    observed: int | None
    settled: int | None


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one look needs, read in one snapshot."""

    rollout: Rollout
    evidence: list[EvidenceRow]
    overrides: list[str]


class RolloutStore(RecordTables, EffectTables):
    """The rollout tables of one control database."""

    def __init__(self, db: ControlDb, code_version: str) -> None:
        super().__init__(db)
        self.code_version = code_version

    # --- reading --------------------------------------------------------------------------------------------------
    def view(self, rollout_id: str) -> RolloutView:
        """The rollout with its evidence and its unsettled overrides. Raises NotFoundError."""
        seen = schema.override_seen
        with self.db.read() as connection:
            rollout = _load(connection, rollout_id)
            evidence = connection.execute(
                sa.select(schema.evidence).where(schema.evidence.c.rollout_id == rollout_id)
            ).mappings()
            rows = [EvidenceRow(**(dict(row) | {"counts": msgspec.json.decode(row["counts"])})) for row in evidence]
            overrides = connection.execute(
                sa.select(seen.c.event_id)
                .where(seen.c.rollout_id == rollout_id, seen.c.settled.is_(None))
                .order_by(seen.c.event_id)
            ).scalars()
            return RolloutView(rollout=rollout, evidence=rows, overrides=list(overrides))

    def load(self, rollout_id: str) -> Rollout:
        """The rollout. Raises NotFoundError naming the newest ones."""
        with self.db.read() as connection:
            return _load(connection, rollout_id)

    def rollouts(
        self, model: str | None = None, slot: str | None = None, *, unreadable: dict[str, str] | None = None
    ) -> list[Rollout]:
        """Rollouts, oldest first per model.

        Raises ContractError for one that this version cannot read; with `unreadable`, such are left out, and put in
        there by their id, with the reason.
        """
        table = schema.rollout
        query = sa.select(table.c.id, table.c.document).order_by(table.c.model, table.c.n)
        if model is not None:
            query = query.where(table.c.model == model)
        if slot is not None:
            query = query.where(table.c.slot == slot)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        found = []
        for rollout_id, document in rows:
            try:
                found.append(_rollout(rollout_id, document))
            except ContractError as error:
                if unreadable is None:
                    raise
                unreadable[rollout_id] = str(error)
        return found

    def in_its_way(self, rollout: Rollout) -> str | None:
        """The running rollout, of its model or of one that feeds or is fed by it, that it has to wait for."""
        with self.db.read() as connection:
            return _in_its_way(connection, rollout)

    def newest_decision(self, rollout_id: str) -> Decision | None:
        """The last decision about the rollout; None before the first. Raises NotFoundError."""
        decided = (decision_of(line) for line in reversed(self.entries(self.load(rollout_id).model, rollout_id)))
        return next((decision for decision in decided if decision is not None), None)

    # --- deciding -------------------------------------------------------------------------------------------------
    def insert(self, model: str, make: Callable[[int, str | None], Rollout]) -> Rollout:
        """Put a new rollout into the model's queue. `make(n, champion)` builds it from its number and the champion now.

        Raises TerminalError when another one waits already (replace it first).
        """
        with self.db.write() as connection:
            table = schema.rollout
            newest = connection.execute(sa.select(sa.func.max(table.c.n)).where(table.c.model == model)).scalar() or 0
            rollout = make(newest + 1, _champion(connection, model))
            waiting = connection.execute(
                sa.select(table.c.id).where(table.c.model == model, table.c.slot == "waiting")
            ).scalar()
            if waiting is not None:
                raise TerminalError(f"rollout of {model}", got=f"{waiting} waits already", expected="a free place")
            connection.execute(sa.insert(table).values(n=newest + 1, **_columns(rollout)))
        return rollout

    def commit(self, rollout: Rollout, decision: Decision) -> tuple[record.Entry, Rollout]:
        """Append the decision to the record and move the rollout on, in one transaction.

        `rollout` is the state the decision was taken on. Raises StaleDecisionError when the rollout has changed
        meanwhile, its model's place is taken, or the champion it has to beat is not the champion any more.
        """
        with self.db.write() as connection:
            return self.commit_in(connection, rollout, decision)

    def commit_in(
        self, connection: sa.Connection, rollout: Rollout, decision: Decision
    ) -> tuple[record.Entry, Rollout]:
        """`commit` inside the caller's write transaction."""
        current = _load(connection, rollout.id)
        if current.revision != rollout.revision or current.status != rollout.status:
            raise StaleDecisionError(
                f"decision about {rollout.id}",
                got=f"one taken on revision {rollout.revision}",
                expected=f"revision {current.revision} ({current.status} in {current.stage or 'the queue'})",
            )
        previous = head(connection, rollout.model)
        n = previous.n + 1 if previous is not None else 1
        after = apply(rollout, decision, n)
        if rollout.slot != "running" and (after.slot == "running" or rollout.status == "promoted"):
            _check_turn(connection, rollout)
        planned = plan_actions(rollout, decision, record.decision_id(rollout.model, n))
        body = {
            "schema": BODY,
            "decision": msgspec.to_builtins(decision),
            "actions": acts.to_builtins(planned),
            "code": self.code_version,
        }
        if decision.cause == "started":  # with what it was given, the record can be read without this database
            body["rollout"] = msgspec.to_builtins(rollout)
        line = record.entry(rollout.model, previous, body)
        insert_entry(connection, line, decision.rollout_id, decision.kind, len(planned), decision.wall_us)
        table, seen = schema.rollout, schema.override_seen
        connection.execute(sa.update(table).where(table.c.id == rollout.id).values(**_columns(after)))
        if decision.overrides:
            connection.execute(sa.update(seen).where(seen.c.event_id.in_(decision.overrides)).values(settled=n))
        return line, after

    def refresh_waiting(self, rollout: Rollout) -> Rollout:
        """The waiting rollout with the champion of now as what it has to beat."""
        with self.db.write() as connection:
            current = _load(connection, rollout.id)
            fresh = msgspec.structs.replace(current, champion=_champion(connection, rollout.model))
            if fresh != current and current.status == "waiting":
                connection.execute(
                    sa.update(schema.rollout).where(schema.rollout.c.id == rollout.id).values(**_columns(fresh))
                )
        return fresh

    def observe(self, event_id: str) -> record.Entry | None:
        """Chain an override of the gateway as `observed`; None when it was chained before."""
        seen = schema.override_seen
        with self.db.write() as connection:
            row = connection.execute(sa.select(seen).where(seen.c.event_id == event_id)).mappings().one()
            if row["observed"] is not None:
                return None
            body = {"schema": BODY, "override": msgspec.json.decode(row["document"]), "code": self.code_version}
            line = record.entry(row["model"], head(connection, row["model"]), body)
            insert_entry(connection, line, row["rollout_id"], "observed", 0, wall_us())
            connection.execute(sa.update(seen).where(seen.c.event_id == event_id).values(observed=line.n))
            return line

    def overrides(self, *, unsettled: bool = False, model: str | None = None) -> list[OverrideRow]:
        """Overrides seen, in order of their event ids; `unsettled`: those that no decision has dealt with."""
        seen = schema.override_seen
        query = sa.select(seen).order_by(seen.c.event_id)
        if unsettled:
            query = query.where(seen.c.settled.is_(None))
        if model is not None:
            query = query.where(seen.c.model == model)
        with self.db.read() as connection:
            return [OverrideRow(**row) for row in connection.execute(query).mappings()]

    # --- evidence of other jobs -------------------------------------------------------------------------------------
    def put_evidence(self, row: EvidenceRow) -> None:
        """Store one part of a rollout's evidence, replacing it."""
        with self.db.write() as connection:
            upsert_evidence(connection, row)


def _in_its_way(connection: sa.Connection, rollout: Rollout) -> str | None:
    """What has been promoted goes back whatever runs on models beside it: only its own model's is in its way then."""
    table = schema.rollout
    query = sa.select(table.c.id, table.c.model, table.c.document).where(table.c.slot == "running")
    for other_id, model, document in connection.execute(query).all():
        if other_id != rollout.id and (model == rollout.model or _touches(rollout, other_id, model, document)):
            return str(other_id)
    return None


def _touches(waiting: Rollout, other_id: str, model: str, document: str) -> bool:
    """Whether a rollout that waits has to wait for that of another model, too."""
    if waiting.status != "waiting":
        return False
    try:
        return waiting.touches(_rollout(other_id, document))
    except ContractError:  # what feeds it is not known: what it feeds is
        return model in waiting.plan.fed_by


def _check_turn(connection: sa.Connection, rollout: Rollout) -> None:
    """A rollout may act when no other one of its model runs, and it knows the champion as it is."""
    other = _in_its_way(connection, rollout)
    if other is not None:
        hint = f"Decide about {other} first."
        raise StaleDecisionError(rollout.id, got=f"{other} is running", expected="a free place", hint=hint)
    expected = rollout.challenger if rollout.status == "promoted" else rollout.champion
    champion = _champion(connection, rollout.model)
    if champion != expected:
        raise StaleDecisionError(rollout.id, got=f"champion {champion}", expected=f"champion {expected}")


def upsert_evidence(connection: sa.Connection, row: EvidenceRow) -> None:
    """Insert or replace one part of a rollout's evidence inside the caller's transaction."""
    table = schema.evidence
    values = msgspec.structs.asdict(row) | {"counts": msgspec.json.encode(row.counts, order="sorted").decode()}
    where = (table.c.rollout_id == row.rollout_id) & (table.c.part == row.part)
    if connection.execute(sa.update(table).where(where).values(**values)).rowcount == 0:
        connection.execute(sa.insert(table).values(**values))


def _load(connection: sa.Connection, rollout_id: str) -> Rollout:
    table = schema.rollout
    document = connection.execute(sa.select(table.c.document).where(table.c.id == rollout_id)).scalar()
    if document is None:
        near = connection.execute(sa.select(table.c.id).order_by(table.c.n.desc()).limit(5)).scalars()
        hint = "`slipway rollout list` shows all; `slipway rollout start MODEL` begins one."
        raise NotFoundError("rollout", got=rollout_id, expected=list(near) or "a started rollout", hint=hint)
    return _rollout(rollout_id, document)


def _rollout(rollout_id: str, document: str) -> Rollout:
    try:
        return _decode_rollout(document)
    except msgspec.MsgspecError as error:
        raise ContractError(
            f"rollout {rollout_id}",
            got=f"a state that this version cannot read ({error})",
            expected="one of this version",
            hint="End it with the version that wrote it, and start it again.",
        ) from error


def _columns(rollout: Rollout) -> Mapping[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "slot": rollout.slot,
        "status": rollout.status,
        "challenger": rollout.challenger,
        "revision": rollout.revision,
        "document": msgspec.json.encode(rollout, order="sorted").decode(),
    }


def _champion(connection: sa.Connection, model: str) -> str | None:
    return connection.execute(sa.select(schema.champion.c.release).where(schema.champion.c.model == model)).scalar()
