"""What the collector writes down in the control database: planned batches, positions, counters, evidence, overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import ControlDb
from pipelines.adapters.rollout_store import EvidenceRow, upsert_evidence
from pipelines.collect.numbering import Block, Counters
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import TerminalError
from pipelines.contracts.events import Override
from pipelines.contracts.streams import Gap, Position, Range, StreamKey


class BatchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What batch `n` consists of, written down before it is worked on: ranges, and what lies behind them."""

    n: int
    ranges: list[Range]
    after: list[Position]
    gaps: list[Gap]
    offsets: dict[str, int] = {}


class BatchDone(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that becomes true in the one transaction that completes a batch."""

    counters: Counters
    blocks: list[Block]
    overrides: list[Override]
    evidence: list[EvidenceRow]


_plans = msgspec.json.Decoder(BatchPlan)


class CollectorStore:
    """The collector's tables of one control database."""

    def __init__(self, db: ControlDb) -> None:
        self.db = db

    def planned(self) -> BatchPlan | None:
        """The batch that was planned and not completed."""
        table = schema.collector_batch
        with self.db.read() as connection:
            text = connection.execute(sa.select(table.c.plan).where(table.c.status == "planned")).scalar()
        return _plans.decode(text) if text is not None else None

    def last_batch(self) -> int:
        """The number of the newest completed batch; 0 before the first."""
        table = schema.collector_batch
        with self.db.read() as connection:
            query = sa.select(sa.func.max(table.c.n)).where(table.c.status == "done")
            return int(connection.execute(query).scalar() or 0)

    def positions(self) -> dict[StreamKey, Position]:
        """How far each stream has been read."""
        with self.db.read() as connection:
            rows = connection.execute(sa.select(schema.collector_stream)).mappings().all()
        return {
            key: Position(
                key=key,
                segment=row["segment"],
                offset=row["offset"],
                next_n=row["next_n"],
                repeats=row["repeats"],
                problem=row["problem"],
            )
            for row in rows
            for key in [StreamKey(row["gateway"], row["worker"], row["epoch"])]
        }

    def offsets(self) -> dict[str, int]:
        """The next offset to read, by `<topic>@<its id>/<partition>`."""
        table = schema.collector_offset
        with self.db.read() as connection:
            return {row.source: row.next for row in connection.execute(sa.select(table))}

    def gaps(self) -> list[Gap]:
        """Counters that were missing."""
        table = schema.collector_gap
        query = sa.select(table).order_by(table.c.gateway, table.c.worker, table.c.epoch, table.c.first_n)
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        return [Gap(StreamKey(row.gateway, row.worker, row.epoch), row.first_n, row.last_n) for row in rows]

    def counters(self) -> Counters:
        """Numbers given so far."""
        made = Counters()
        with self.db.read() as connection:
            for scope, name, value in connection.execute(sa.select(schema.collector_counter)):
                (made.seq if scope == "model" else made.rollout_seq)[name] = value
        return made

    def blocks(self, rollout_id: str) -> list[Block]:
        """A rollout's block boundaries."""
        table = schema.collector_block
        with self.db.read() as connection:
            rows = connection.execute(
                sa.select(table).where(table.c.rollout_id == rollout_id).order_by(table.c.block)
            ).mappings()
            return [Block(**dict(row)) for row in rows]

    def plan(self, plan: BatchPlan) -> None:
        """Write a batch down before it is worked on. Raises TerminalError when another collector already has."""
        row = {
            "n": plan.n,
            "status": "planned",
            "plan": msgspec.json.encode(plan, order="sorted").decode(),
            "planned_us": wall_us(),
        }
        try:
            with self.db.write() as connection:
                connection.execute(sa.insert(schema.collector_batch).values(row))
        except sa.exc.IntegrityError as error:
            raise TerminalError(
                f"batch {plan.n}",
                got="planned by another collector",
                expected="one collector an installation",
                hint="`slipway status collector` shows the one that runs.",
            ) from error

    def complete(self, plan: BatchPlan, done: BatchDone) -> None:
        """Everything of a batch at once: positions, numbers, evidence, overrides, its completion."""
        table = schema.collector_batch
        with self.db.write() as connection:
            changed = connection.execute(
                sa.update(table)
                .where(table.c.n == plan.n, table.c.status == "planned")
                .values(status="done", done_us=wall_us())
            ).rowcount
            if changed != 1:
                return
            _write_positions(connection, plan.after)
            _write_offsets(connection, plan.offsets)
            for gap in plan.gaps:
                values = dict(zip(StreamKey._fields, gap.key, strict=True))
                connection.execute(
                    sa.insert(schema.collector_gap).values(**values, first_n=gap.first_n, last_n=gap.last_n)
                )
            _write_counters(connection, done.counters)
            if done.blocks:
                connection.execute(sa.insert(schema.collector_block), [msgspec.structs.asdict(b) for b in done.blocks])
            for override in done.overrides:
                connection.execute(
                    sa.insert(schema.override_seen).values(
                        event_id=str(override.id),
                        model=override.model,
                        rollout_id=override.rollout_id,
                        document=msgspec.json.encode(override, order="sorted").decode(),
                    )
                )
            for row in done.evidence:
                upsert_evidence(connection, row)

    def note_positions(self, positions: Iterable[Position], offsets: Mapping[str, int]) -> None:
        """Store positions and offsets that moved without events (ended streams, problems, repeats)."""
        with self.db.write() as connection:
            _write_positions(connection, positions)
            _write_offsets(connection, offsets)


def _write_positions(connection: sa.Connection, positions: Iterable[Position]) -> None:
    table = schema.collector_stream
    for position in positions:
        key: dict[str, Any] = dict(zip(StreamKey._fields, position.key, strict=True))
        values = {
            "segment": position.segment,
            "offset": position.offset,
            "next_n": position.next_n,
            "repeats": position.repeats,
            "problem": position.problem,
        }
        where = sa.and_(*(table.c[name] == value for name, value in key.items()))
        if connection.execute(sa.update(table).where(where).values(**values)).rowcount == 0:
            connection.execute(sa.insert(table).values(**key, **values))


def _write_offsets(connection: sa.Connection, offsets: Mapping[str, int]) -> None:
    table = schema.collector_offset
    for source, offset in offsets.items():
        if connection.execute(sa.update(table).where(table.c.source == source).values(next=offset)).rowcount == 0:
            connection.execute(sa.insert(table).values(source=source, next=offset))


def _write_counters(connection: sa.Connection, counters: Counters) -> None:
    table = schema.collector_counter
    for scope, numbers in (("model", counters.seq), ("rollout", counters.rollout_seq)):
        for name, value in numbers.items():
            where = (table.c.scope == scope) & (table.c.name == name)
            if connection.execute(sa.update(table).where(where).values(value=value)).rowcount == 0:
                connection.execute(sa.insert(table).values(scope=scope, name=name, value=value))
