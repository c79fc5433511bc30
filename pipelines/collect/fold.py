"""Rows in the collector's order -> Evidence.

Every increment is fixed by rows at or before its position in the order, and by nothing else: not by how the rows were
cut into batches, not by a clock. What a bet needs from the past (latency cuts, the KPI's centre) is frozen per block
of 500.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.collect.admission import Admission
from pipelines.collect.answers import attach_kpis, attach_labels, respond
from pipelines.collect.class_bets import ClassBets, pair_class
from pipelines.collect.open_requests import OpenRequests
from pipelines.collect.request_columns import BOTH, FAR, NONE, OK, Bools, Requests, drawn, empty, in_stages, take
from pipelines.collect.row_order import Rows, codes, merge, micros
from pipelines.collect.seq_gaps import SeqGaps
from pipelines.collect.unit_bets import UnitBets
from pipelines.collect.value_bets import ValueBets
from pipelines.rollout.policy import Policy
from pipelines.stats.evidence import Evidence
from pipelines.stats.nats import Ints
from pipelines.stats.postings import Count, Step


class Fold:
    """Incremental fold of one rollout's rows.

    `add` takes one batch of rows in the collector's order, `evidence()` gives the sum so far. Cutting the same
    ordered rows into other batches gives the same evidence, byte for byte.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._stages = tuple(stage.name for stage in policy.stages)
        self._evidence = Evidence()
        self._next = 0
        self._event_mark = -FAR
        self._wall_mark = -FAR
        self._two_clocks: bool | None = None
        kpis = max(1, len(policy.kpis))
        self._requests = OpenRequests(lambda size: empty(size, len(policy.slices), kpis))
        self._admission = Admission(policy, self._requests)
        self._bake = next((k for k, stage in enumerate(policy.stages) if stage.rejudges), None)
        self._baked_from = FAR
        self._gaps = SeqGaps(round(policy.response_deadline_s * 1e6))
        units = UnitBets(policy)
        self._classes = ClassBets(policy, units)
        self._values = ValueBets(policy, units)

    def add(
        self,
        assignments: pa.Table | None = None,
        responses: pa.Table | None = None,
        labels: pa.Table | None = None,
        kpi: pa.Table | None = None,
    ) -> None:
        """Adds one batch: pyarrow tables (or None) with the columns of slipway-gate/1; `rollout_id` is not looked at.

        Optional columns: `order` (int64, on all four: the collector's total order over all rows; absent: `ts`);
        `wall_ts` on assignments and responses (response deadlines are judged on it); `served` on responses (bool; a
        champion's served answer to a request of the challenger is the challenger's error); `beside_ms` on responses
        (what the other arm took, scored beside this one; null: not measured. A pair is compared by it, drawn arms are
        not); `process` on assignments (warm-up is counted per process start); every column named in `policy.slices` on
        assignments; `unit_id` when the policy randomises units; `metric` on kpi (the mean metric that a value is of;
        null: of each). `request_id` is int64 or string. Raises ContractError for a missing column, an unknown stage or
        metric.
        """
        self.step({"assignments": assignments, "responses": responses, "labels": labels, "kpi": kpi}).into(
            self._evidence
        )

    def evidence(self) -> Evidence:
        """The evidence of all rows added so far (an independent copy)."""
        return self._evidence.copy()

    def step(self, batch: dict[str, pa.Table | None]) -> Step:
        """Takes in one batch and returns its increments by position, without adding them to `evidence()`."""
        rows = merge(batch)
        size = sum(len(part.position) for part in rows.values())
        first = self._next
        none = np.zeros(0, dtype=np.int64)
        mark, at = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        step = Step([], [], first, mark, at, (none, none, none), None, self._stages, self._admission.slices)
        if not size:
            return step
        for part in rows.values():
            step.row_us[part.position] = part.ts
        met = (self._event_mark, self._wall_mark)
        event, wall = self._watermarks(rows, size)
        step.watermark_us[:] = event
        self._next += size

        if "assignments" in rows:
            fresh = self._admission.open(
                rows["assignments"], np.append(event, met[0]), np.append(wall, met[1]), first, step
            )
            part = rows["assignments"]
            seq = part.table["seq"].to_numpy().astype(np.int64)
            assigned = (part.position + first, seq, codes(part.table["stage"], list(self._stages)))
            step = step._replace(first_us=int(part.ts.min()), assigned=assigned)
            step.counts.append(self._gaps.take(wall, first, seq, assigned[0], assigned[2]))
            baking = assigned[0][assigned[2] == self._bake] if self._bake is not None else none
            self._baked_from = np.minimum(self._baked_from, baking.min(initial=FAR))
            step.postings.extend(self._classes.sample_ratio(fresh))
        else:
            step.counts.append(self._gaps.take(wall, first, none, none, none))
        lost_at = self._crossing(wall, self._open["deadline"], first, done=self._open["closed"])
        due_at = self._crossing(event, self._open["due"], first, done=self._open["settled"])
        kpi_at = due_at
        if self._policy.kpi_maturity_s is not None:
            kpi_at = self._crossing(event, self._open["kpi_due"], first, done=self._open["kpi_settled"])
        if "responses" in rows:
            respond(self._requests, self._policy, rows["responses"], first, lost_at, step)
            self._answered(first, step)
        self._lose(lost_at, step)
        if "labels" in rows:
            closes = np.where(self._open["settled"], np.int64(-1), due_at)
            attach_labels(self._requests, rows["labels"], first, closes, step)
        if "kpi" in rows:
            closes = np.where(self._open["kpi_settled"], np.int64(-1), kpi_at)
            attach_kpis(self._requests, rows["kpi"], self._policy.kpis, first, closes, step)
        self._settle(due_at, step)
        self._settle_kpi(kpi_at, step)
        step.postings.extend(self._classes.blocks.close(wall, first, len(self._policy.slices)))
        self._compact(lost_at, due_at, kpi_at)
        return step

    @property
    def _open(self) -> Requests:
        return self._requests.rows

    def _watermarks(self, rows: dict[str, Rows], size: int) -> tuple[Ints, Ints]:
        """Running maxima of event time and wall time by position, the past included."""
        event = np.empty(size, dtype=np.int64)
        wall = np.full(size, -FAR, dtype=np.int64)
        if "assignments" in rows or "responses" in rows:
            self._two_clocks = any("wall_ts" in part.table.column_names for part in rows.values())
        for part in rows.values():
            event[part.position] = part.ts
            if "wall_ts" in part.table.column_names:
                wall[part.position] = micros(part.table["wall_ts"])
            elif self._two_clocks is False:
                # Labels and KPIs carry event time alone, also where a batch holds nothing else.
                wall[part.position] = part.ts
        event = np.maximum(np.maximum.accumulate(event), self._event_mark)
        wall = np.maximum(np.maximum.accumulate(wall), self._wall_mark)
        self._event_mark, self._wall_mark = event[-1], wall[-1]
        return event, wall

    @staticmethod
    def _crossing(mark: Ints, limit: Ints, first: int, *, done: Bools) -> Ints:
        """The position at which the watermark `mark` reaches each limit; far away when it does not in this batch."""
        place = np.searchsorted(mark, limit, side="left").astype(np.int64)
        return np.where(done | (place >= len(mark)), FAR, place + first)

    def _answered(self, first: int, step: Step) -> None:
        """Judges what the answers of this batch show: errors, invalid scores, latency, and pairs of scores."""
        held = self._open
        lots = drawn(held)
        index = np.arange(len(lots))
        mine = held["answered"][index, np.where(lots, held["arm"], 0)]
        both = held["answered"].max(axis=1)
        known = np.where(lots, mine, both)
        fresh = np.flatnonzero((known >= first) & (known < FAR) & ~held["warm"])
        # Requests are held in the order of their positions, so a stable sort keeps it among equals.
        fresh = fresh[np.argsort(known[fresh], kind="stable")]
        rows, at = take(held, fresh), known[fresh]
        for metric in self._policy.metrics:
            if metric.kind == "event":
                step.postings.extend(self._classes.events(metric, rows, at))
        step.postings.extend(self._classes.latencies(rows, at))
        paired = [metric for metric in self._policy.metrics if metric.kind in ("paired_mean", "paired_abs")]
        if paired:
            pairs = np.flatnonzero((both >= first) & (both < FAR) & ~held["warm"] & (held["status"] == OK).all(axis=1))
            pairs = pairs[np.argsort(both[pairs], kind="stable")]
            rows, at = take(held, pairs), both[pairs]
            step.postings.extend(self._values.scores(metric, rows, at) for metric in paired)

    def _lose(self, lost_at: Ints, step: Step) -> None:
        """At the deadline: which arm stayed silent, which answered twice. The warm-up is not spared."""
        rows, at = self._reached(lost_at)
        # A request that went to one arm alone, without a draw, compares nothing: its failures are only counted.
        alone = ~drawn(rows) & (rows["arm"] != BOTH)
        asked = np.where(alone, rows["arm"], 0)
        for name, outcome in (("lost_responses", rows["status"] == NONE), ("duplicates", rows["doubled"])):
            mine = outcome[np.arange(len(asked)), asked]
            single = alone & mine
            step.counts.append(Count(name, at[single], rows["stage"][single]))
        rows, at = take(rows, ~alone), at[~alone]
        for name, outcome in (("lost_responses", rows["status"] == NONE), ("duplicates", rows["doubled"])):
            step.postings.extend(self._classes.integrity(name, rows, at, outcome))
            kind = pair_class(rows, outcome)
            counted = np.where(drawn(rows), kind % 2 == 1, kind > 0)
            step.counts.append(Count(name, at[counted], rows["stage"][counted]))

    def _settle(self, due_at: Ints, step: Step) -> None:
        """At maturity, in request order: paired losses. A request without a label is counted and left out."""
        rows, at = self._reached(due_at)
        labelled = rows["labelled"]
        step.counts.append(Count("labelled", at[labelled], rows["stage"][labelled]))
        step.counts.append(Count("unlabelled", at[~labelled], rows["stage"][~labelled]))
        both = (rows["status"] == OK).all(axis=1) & (rows["answered"] <= at[:, None]).all(axis=1)
        pairs = labelled & both & ~rows["warm"]
        step.counts.append(Count("pairs", at[pairs], rows["stage"][pairs]))
        judged, judged_at = take(rows, pairs), at[pairs]
        if self._bake is not None:
            judged = in_stages(judged, np.where(judged_at > self._baked_from, self._bake, judged["stage"]))
        for metric in self._policy.metrics:
            if metric.kind == "paired_loss":
                step.postings.append(self._values.loss(metric, judged, judged_at))

    def _settle_kpi(self, kpi_at: Ints, step: Step) -> None:
        """At maturity, in request order: KPIs."""
        if not self._policy.kpis:
            return
        rows, at = self._reached(kpi_at)
        known = rows["has_kpi"].any(axis=1)
        step.counts.append(Count("kpis", at[known], rows["stage"][known]))
        for k, name in enumerate(self._policy.kpis):
            wanted = rows["has_kpi"][:, k] & ~rows["warm"]
            mine = take(rows, wanted)
            posting, out_of_range = self._values.mean(self._policy.metric(name), mine["kpi"][:, k], mine, at[wanted])
            step.postings.append(posting)
            step.counts.append(out_of_range)

    def _reached(self, position: Ints) -> tuple[Requests, Ints]:
        """The open requests whose `position` lies in this batch, in its order, and those positions."""
        chosen = np.flatnonzero(position < FAR)
        chosen = chosen[np.argsort(position[chosen], kind="stable")]
        return take(self._open, chosen), position[chosen]

    def _compact(self, lost_at: Ints, due_at: Ints, kpi_at: Ints) -> None:
        """Forgets requests of which nothing can come any more."""
        self._open["closed"] |= lost_at < FAR
        self._open["settled"] |= due_at < FAR
        self._open["kpi_settled"] |= kpi_at < FAR
        self._requests.forget(self._open["closed"] & self._open["settled"] & self._open["kpi_settled"])
