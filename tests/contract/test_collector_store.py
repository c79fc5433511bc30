"""The collector's own tables, on SQLite and on Postgres: one plan a batch, and everything of a batch or nothing."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import IntegrityError

from pipelines.adapters.collector_store import (
    BatchDone,
    BatchPlan,
    Block,
    CollectorStore,
    Counters,
    Gap,
    Position,
    StreamKey,
)
from pipelines.adapters.control_db import control_db
from pipelines.adapters.rollout_store import EvidenceRow
from pipelines.contracts.errors import TerminalError
from pipelines.contracts.events import EventId, Override
from pipelines.settings import Settings
from pipelines.wiring.rollout_gate import rollout_store

STREAM = StreamKey("gw0", 3, 1_763_720_000_000_000)  # an epoch is in microseconds
AFTER = Position(key=STREAM, segment=7_000_000_000, offset=5_000_000_000, next_n=9, repeats=1, problem="torn")
PLAN = BatchPlan(n=1, ranges=[], after=[AFTER], gaps=[Gap(STREAM, 2, 4)])


def done(**fields: object) -> BatchDone:
    block = Block(rollout_id="r1", block=0, last_rollout_seq=500, last_seq=640, event_us=10, wall_us=11)
    override = Override(
        id=EventId("gw0", 3, 1, 5),
        model="m",
        rollout_id="r1",
        route_version=2,
        reason="5 of the last 9 calls",
        actor="circuit-breaker",
        event_us=10,
        wall_us=11,
    )
    counters = Counters(seq={"m": 640}, rollout_seq={"r1": 500})
    evidence = EvidenceRow(
        rollout_id="r1", part="live", batch=1, event_us=10, digest="d" * 64, counts={"a": 1}, document="{}"
    )
    made = {"counters": counters, "blocks": [block], "overrides": [override], "evidence": [evidence]}
    return BatchDone(**(made | fields))


def test_a_second_collector_is_refused_with_a_hint(settings: Settings) -> None:
    database = control_db(settings)
    plan = BatchPlan(n=1, ranges=[], after=[], gaps=[])
    CollectorStore(database).plan(plan)

    with pytest.raises(TerminalError, match="one collector an installation"):
        CollectorStore(database).plan(plan)


def test_a_completed_batch_is_there_as_a_whole_and_once(settings: Settings) -> None:
    store = CollectorStore(control_db(settings))
    store.plan(PLAN)
    assert (store.planned(), store.last_batch()) == (PLAN, 0)
    for _ in range(2):  # a collector that was killed behind its commit does it again
        store.complete(PLAN, done())
    assert (store.planned(), store.last_batch()) == (None, 1)
    assert store.positions() == {STREAM: AFTER}
    assert store.gaps() == PLAN.gaps
    assert (store.counters().seq, store.counters().rollout_seq) == ({"m": 640}, {"r1": 500})
    assert store.blocks("r1") == done().blocks
    (override,) = rollout_store(settings).overrides()
    assert (override.event_id, override.observed) == ("gw0/3/1/5", None)


def test_a_batch_that_cannot_be_completed_leaves_nothing(settings: Settings) -> None:
    store = CollectorStore(control_db(settings))
    store.plan(PLAN)
    twice = done().blocks * 2
    with pytest.raises(IntegrityError):
        store.complete(PLAN, done(blocks=twice))
    assert store.planned() == PLAN
    assert (store.positions(), store.gaps(), store.blocks("r1"), store.counters().seq) == ({}, [], [], {})
    store.complete(PLAN, done())
    assert store.last_batch() == 1


def test_a_later_batch_replaces_positions_counters_and_evidence(settings: Settings) -> None:
    store = CollectorStore(control_db(settings))
    store.plan(PLAN)
    store.complete(PLAN, done())
    further = Position(key=STREAM, segment=7_000_000_001, offset=8, next_n=30, repeats=1, problem="")
    second = BatchPlan(n=2, ranges=[], after=[further], gaps=[])
    store.plan(second)
    store.complete(second, done(counters=Counters(seq={"m": 700}), blocks=[], overrides=[]))
    assert store.positions() == {STREAM: further}
    assert store.counters().seq == {"m": 700}
    assert store.gaps() == PLAN.gaps
