"""The collector: bus -> numbered events -> lake -> evidence, exactly once through any kill.

Order of effects for one batch: plan written down; rows appended to the lake (one commit a kind, carrying the batch's
number as an application transaction); evidence, positions, numbers and completion in one database transaction. A
restart finds the planned batch, reads the same bytes and does the same again; what was done already is skipped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime

import msgspec
import numpy as np

from pipelines.adapters.collector_store import BatchDone, BatchPlan, CollectorStore
from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake, open_lake
from pipelines.adapters.inference_tables import InferenceTables
from pipelines.adapters.kafka_bus import KafkaBus
from pipelines.collect import numbering, quarantine, quarantine_table
from pipelines.collect.bus import Bus, SegmentBus
from pipelines.collect.completeness import StreamReport, check
from pipelines.collect.quarantine import Refused
from pipelines.collect.tables import to_tables
from pipelines.contracts import segment_retention
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import TransientError
from pipelines.contracts.events import KINDS, Override
from pipelines.contracts.kafka import connection
from pipelines.contracts.segments import Frame
from pipelines.contracts.streams import StreamKey, stands_still
from pipelines.rollout.record import ANCHORS
from pipelines.settings import Settings
from pipelines.wiring import record_copy
from pipelines.wiring.live_evidence import LiveEvidence, read_log
from pipelines.wiring.rollouts import observe_overrides, rollout_store, withdraw_harm
from pipelines.wiring.tombstones import ErasedRequests

DAY_S = 86_400.0
REMOVE_EVERY_S = 600.0
"""How often old segments are looked for."""
COUNTED_AFTER_S = 120.0
"""For how long after a rollout's end its late rows are still counted (exposed requests among them)."""

_log = logging.getLogger("slipway.collector")


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One pass: the batch done (0: nothing was new), its events, those of its frames that went into quarantine, and
    the streams that stand still with the reason.
    """

    batch: int
    events: int
    quarantined: int = 0
    by_kind: dict[str, int]
    lag_us: int
    problems: dict[str, str]


def bus_of(settings: Settings) -> Bus:
    """Where the installation's inference log arrives: on a topic when Kafka is configured, else in its folder."""
    if settings.kafka:
        return KafkaBus(connection(settings.kafka, settings.kafka_topic, settings.kafka_config))
    return SegmentBus(settings.bus)


class Collector:
    """One process's collector. Only one may run per installation: the plan's primary key refuses a second."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.bus = bus_of(settings)
        self.store = CollectorStore(control_db(settings))
        self.rollouts = rollout_store(settings)
        self.lake = open_lake(settings)
        self.tables = InferenceTables(self.lake)
        self._live: dict[str, LiveEvidence] = {}
        self._unreadable: dict[str, str] = {}
        self._positions = self.store.positions()
        self._offsets = self.store.offsets()
        self._counters = self.store.counters()
        self._erased = ErasedRequests(settings)
        self._last = self.store.last_batch()
        self._met: set[str] = set()
        self._met_at: int | None = None

    def close(self) -> None:
        """Let go of the bus."""
        self.bus.close()

    def once(self) -> Report:
        """Finish a batch that was begun, else take what is new on the bus as the next one."""
        plan, parts = self._begin()
        if plan is None:
            observe_overrides(self.settings)
            return Report(batch=0, events=0, by_kind={}, lag_us=0, problems=self.problems())
        counters = self._counters.copy()
        if self._erased.changed():  # what is folded in memory may know a unit by another name than the lake
            self._live = {name: one for name, one in self._live.items() if one.ended_s is not None}
        live = self._running(plan.n)
        decoded = quarantine.decode([one.key for one in plan.ranges], parts)
        refused = [item for part in decoded for item in part if isinstance(item, Refused)]
        ordered = numbering.merge(decoded)
        seen = {rollout: one.case.requests for rollout, one in live.items()}
        numbered, blocks = numbering.number(ordered, counters, seen)
        tables = self._erased.blank(to_tables(numbered, plan.n))
        for kind, table in tables.items():
            self.tables.append(kind, table, plan.n)
        if refused:
            self._set_aside(refused, plan.n)
        touched = [one for one in live.values() if one.take(tables)]
        overrides = [item.event for item in numbered if isinstance(item.event, Override)]
        self.store.complete(
            plan,
            BatchDone(
                counters=counters,
                blocks=blocks,
                overrides=overrides,
                evidence=[one.row(plan.n) for one in touched],
            ),
        )
        self._counters, self._last = counters, plan.n
        self._positions |= {position.key: position for position in plan.after}
        self._offsets |= plan.offsets
        observe_overrides(self.settings)
        if touched:
            withdraw_harm(self.settings)
        newest = max((item.event.wall_us for item in numbered), default=0)
        return Report(
            batch=plan.n,
            events=len(numbered),
            quarantined=len(refused),
            by_kind={kind: table.num_rows for kind, table in tables.items()},
            lag_us=max(0, time.time_ns() // 1000 - newest) if newest else 0,
            problems=self.problems(),
        )

    def _set_aside(self, refused: list[Refused], batch: int) -> None:
        """Put what is no event into quarantine."""
        rows = quarantine_table.to_table(self._erased.withhold(refused), batch, wall_us())
        self.tables.set_aside(rows, batch)
        reasons = quarantine.summary(one.reason for one in refused)
        _log.error("batch %d: %d events are in quarantine (%s): %s", batch, len(refused), quarantine.TABLE, reasons)

    def remove_old_segments(self) -> int:
        """Remove from this machine's bus what the lake holds and is old. Kafka's topic has its own retention."""
        if self.settings.kafka:
            return 0
        before_s = time.time() - self.settings.log_retention_days * DAY_S
        try:
            return segment_retention.remove_read(self.settings.bus, self._positions, before_s)
        except OSError as error:  # the log matters more than the room: the next pass tries again
            _log.error("old segments stay: %s", error)
            return 0

    def problems(self) -> dict[str, str]:
        """Streams and rollouts that stand still until a person has looked, with the reason."""
        still = {str(key): at.problem for key, at in self._positions.items() if stands_still(at)}
        return still | self._unreadable | {name: one.problem for name, one in self._live.items() if one.problem}

    def _begin(self) -> tuple[BatchPlan | None, list[list[Frame]]]:
        begun = self.store.planned()
        if begun is not None:
            next_ns = {key: position.next_n for key, position in self._positions.items()}
            return begun, self.bus.reread(begun.ranges, next_ns)
        found = self.bus.scan(self._positions, self._offsets)
        moved = {key: at for key, at in found.positions.items() if self._positions.get(key) != at}
        ahead = {source: at for source, at in found.offsets.items() if self._offsets.get(source) != at}
        if not found.count and not found.ranges:
            if moved or ahead:
                self.store.note_positions(moved.values(), ahead)
                self._positions |= moved
                self._offsets |= ahead
            return None, []
        plan = BatchPlan(
            n=self._last + 1, ranges=found.ranges, after=list(moved.values()), gaps=found.gaps, offsets=ahead
        )
        self.store.plan(plan)
        return plan, found.frames

    def _running(self, batch: int) -> dict[str, LiveEvidence]:
        """Case and fold of every running rollout; those not in memory are rebuilt from the lake before `batch`.

        Of a rollout that did not run yet when the batch before was looked at, after it had been taken from the bus, the
        lake holds nothing: its route came later. It is not searched for one, which would take as long as the log is.
        """
        self._unreadable = {}
        found = self.rollouts.rollouts(slot="running", unreadable=self._unreadable)
        running = {rollout.id: rollout for rollout in found}
        for gone in self._live.keys() - running.keys():
            ended = self._live[gone].ended_s = self._live[gone].ended_s or time.monotonic()
            if time.monotonic() - ended > COUNTED_AFTER_S:
                del self._live[gone]
        for rollout_id, rollout in running.items():
            if rollout_id not in self._live:
                self._live[rollout_id] = live = LiveEvidence(rollout)
                if rollout_id in self._met or self._met_at != batch - 1:
                    live.take(read_log(self.lake, rollout, before_batch=batch))
        self._met |= running.keys() | self._unreadable.keys()
        self._met_at = batch
        return self._live


def collect_once(settings: Settings) -> Report:
    """One pass of a fresh collector (a batch that was begun, or what is new)."""
    with closing(Collector(settings)) as collector:
        return collector.once()


def collect_all(settings: Settings) -> int:
    """Pass until nothing is new; returns the number of events."""
    events = 0
    with closing(Collector(settings)) as collector:
        while (report := collector.once()).batch:
            events += report.events
    return events


def run(
    settings: Settings,
    stopping: Callable[[], bool],
    *,
    poll_s: float = 0.2,
    commit_s: float = 0.6,
    on_report: Callable[[Report], None] = lambda _: None,
) -> None:
    """Collect until `stopping()`. Looks at the bus every `poll_s`, but begins a batch at most every `commit_s`.

    A control database or a bus that is away is waited for, also at the beginning.
    """
    collector: Collector | None = None
    anchored = ""
    removed_s = -REMOVE_EVERY_S
    told: dict[str, str] = {}
    while not stopping():
        began = time.monotonic()
        try:
            collector = collector or Collector(settings)
            report = collector.once()
            day = datetime.now(UTC).date().isoformat()
            if day != anchored:
                if collector.rollouts.anchor(day):
                    record_copy.copy(settings, collector.rollouts, ANCHORS)
                anchored = day
            if began - removed_s > REMOVE_EVERY_S:
                collector.remove_old_segments()
                removed_s = began
        except TransientError as error:
            _log.warning("%s", error)
            if collector is not None:
                collector.close()
            collector = None  # what it knew may be behind what is stored
            _sleep(1.0, stopping)  # what is away is asked for once a second
            continue
        on_report(report)
        if report.problems != told:
            told = report.problems
            for name, problem in told.items():
                _log.error("%s stands still: %s", name, problem)
        pause = commit_s if report.batch else poll_s
        _sleep(max(0.0, pause - (time.monotonic() - began)), stopping)
    if collector is not None:
        collector.close()


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stopping():
        time.sleep(min(left, 0.1))  # a signal sets a flag, and is obeyed within this


def verify_log(settings: Settings) -> list[StreamReport]:
    """Completeness of the inference log, one report a worker epoch: bus against lake, as far back as the bus goes."""
    store, lake = CollectorStore(control_db(settings)), open_lake(settings)
    parts: dict[StreamKey, list[np.ndarray]] = {}
    for kind in KINDS:
        if not lake.exists(f"inference/{kind}"):
            continue
        table = lake.read(f"inference/{kind}", columns=["gateway", "worker", "epoch", "n"])
        for row in table.group_by(["gateway", "worker", "epoch"]).aggregate([("n", "list")]).to_pylist():
            key = StreamKey(row["gateway"], row["worker"], row["epoch"])
            parts.setdefault(key, []).append(np.array(row["n_list"], dtype=np.int64))
    stored = {key: np.concatenate(found) for key, found in parts.items()}
    with closing(bus_of(settings)) as bus:
        return check(bus.survey(), store.positions(), store.gaps(), stored, _quarantined(lake))


def _quarantined(lake: DeltaLake) -> dict[StreamKey, list[tuple[int, str]]]:
    """Counters of the events in quarantine by stream, with the reasons."""
    found: dict[StreamKey, list[tuple[int, str]]] = {}
    if lake.exists(quarantine.TABLE):
        for row in lake.read(quarantine.TABLE, columns=["gateway", "worker", "epoch", "n", "reason"]).to_pylist():
            found.setdefault(StreamKey(row["gateway"], row["worker"], row["epoch"]), []).append(
                (row["n"], row["reason"])
            )
    return found
