"""From the inference log to the four tables of `slipway-gate/1`, for one rollout, batch by batch.

The collector (fresh rows) and a rebuild (rows from the lake) use this same code, so live evidence and evidence folded
again are the same. `request_id` becomes the rollout's own counter `rollout_seq`; a request of several rows is one
value: its first row's. `order` is twice the model's `seq`: a label that arrives before its assignment is kept back and
comes right behind it. Client retries are dropped with the answers they caused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.assignment import PPM
from pipelines.contracts.events import NOT_COMPARED, metric_by_name

_STAMP = pa.timestamp("us", tz="UTC")
_KEPT_BACK = 50_000
_Truth = tuple[int, int, int, float, str | None]
"""Request, event time, order, value, and of a KPI the metric that it counts for."""
_decode = msgspec.json.Decoder().decode


class Counts(msgspec.Struct, kw_only=True):
    """What the rollout's rows amount to, by stage where it matters; `exposed` are requests that drew the challenger
    (a baking one is champion: its requests are not counted as exposed).
    """

    assignments: dict[str, int] = {}
    challenger: dict[str, int] = {}
    exposed: int = 0
    retries: int = 0
    responses: int = 0
    labels: int = 0
    kpis: int = 0
    repeated: int = 0
    contradicting: int = 0
    first_event_us: int = 0
    last_event_us: int = 0


class Case:
    """The tables of one rollout; `take` must see every batch in order.

    `kpis` are its policy's mean metrics; `metric_by_name` says which of them a KPI value counts for. Without any, all
    values are taken and only counted.
    """

    def __init__(self, rollout_id: str, model: str, slices: tuple[str, ...] = (), kpis: tuple[str, ...] = ()) -> None:
        self.rollout_id = rollout_id
        self.model = model
        self.slices = slices
        self._metric_of = metric_by_name(kpis)
        self.counts = Counts()
        self.requests: dict[str, int] = {}
        self._retries: dict[str, int] = {}
        self._alone: set[str] = set()
        self._answers: dict[tuple[str, str], int] = {}
        self._truths: dict[tuple[str, str | None, int], float] = {}
        self._assigned: dict[int, tuple[int, int]] = {}
        self._first_seq: int | None = None
        self._early: OrderedDict[tuple[str, str], list[tuple[int, float, str | None]]] = OrderedDict()

    def take(self, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
        """One batch of the log (tables by kind) as `assignments`, `responses`, `labels`, `kpi`, where not empty."""
        made: dict[str, pa.Table] = {}
        early: dict[str, list[_Truth]] = {"label": [], "kpi": []}
        if "assignment" in tables:
            made["assignments"] = self._assignments(_of_rollout(tables["assignment"], self.rollout_id), early)
        if "response" in tables:
            made["responses"] = self._responses(_of_rollout(tables["response"], self.rollout_id))
        for kind, name in (("label", "labels"), ("kpi", "kpi")):
            if kind in tables or early[kind]:
                made[name] = self._truth_table(kind, tables.get(kind), early[kind])
        return {name: table for name, table in made.items() if table.num_rows}

    def _assignments(self, rows: pa.Table, early: dict[str, list[_Truth]]) -> pa.Table:
        for request in rows.filter(rows["duplicate"])["request_id"].to_pylist():
            self._retries[request] = self._retries.get(request, 0) + 1
            self.counts.retries += 1
        rows = rows.filter(pc.invert(rows["duplicate"]))
        ids, places = rows["request_id"].to_pylist(), rows["rollout_seq"].to_pylist()
        self.requests.update(zip(ids, places, strict=True))
        if self._first_seq is None and ids:
            self._first_seq = rows["seq"][0].as_py()
        columns = rows.select(["arm", "mode", "stage", "paired", "share_ppm", "seq"]).to_pydict()
        arms, shares = [], []
        for request, arm, mode, paired, ppm in zip(
            ids, columns["arm"], columns["mode"], columns["paired"], columns["share_ppm"], strict=True
        ):
            if mode == "split":
                arms.append(arm)
                shares.append(ppm / PPM)
            elif mode == "single":  # baking: the challenger is the champion
                self._alone.add(request)
                arms.append("challenger")
                shares.append(None)
            else:
                arms.append("both" if paired else arm)
                shares.append(None)
        self._count(columns["stage"], arms, [share is not None for share in shares], rows["event_time"])
        times = rows["event_time"].cast(pa.int64()).to_pylist()
        self._assigned.update(zip(places, zip(columns["seq"], times, strict=True), strict=True))
        if self._early:
            self._release_early(ids, places, early)
        processes = [
            f"{gateway}/{worker}/{epoch}"
            for gateway, worker, epoch in zip(
                rows["gateway"].to_pylist(), rows["worker"].to_pylist(), rows["epoch"].to_pylist(), strict=True
            )
        ]
        slices = [_decode(text) for text in rows["slices"].to_pylist()] if self.slices else []
        return pa.table(
            {
                "request_id": rows["rollout_seq"],
                "seq": rows["rollout_seq"],
                "ts": rows["event_time"],
                "wall_ts": rows["wall_time"],
                "stage": rows["stage"],
                "arm": pa.array(arms, pa.string()),
                "share": pa.array(shares, pa.float64()),
                "unit_id": rows["unit"],
                "process": pa.array(processes, pa.string()),
                "order": pc.multiply(rows["seq"], 2),
            }
            | {name: pa.array([each.get(name) for each in slices], pa.string()) for name in self.slices}
        )

    def _count(self, stages: list[str], arms: list[str], was_drawn: list[bool], times: Any) -> None:
        counts = self.counts
        for stage, arm, drawn in zip(stages, arms, was_drawn, strict=True):
            counts.assignments[stage] = counts.assignments.get(stage, 0) + 1
            if arm == "challenger":
                counts.challenger[stage] = counts.challenger.get(stage, 0) + 1
                counts.exposed += drawn
        if stages:
            bounds = pc.min_max(times.cast(pa.int64())).as_py()
            counts.first_event_us = counts.first_event_us or bounds["min"]
            counts.last_event_us = max(counts.last_event_us, bounds["max"])

    def _responses(self, rows: pa.Table) -> pa.Table:
        requests = rows["request_id"].to_pylist()
        arms = [
            "challenger" if request in self._alone else arm
            for request, arm in zip(requests, rows["arm"].to_pylist(), strict=True)
        ]
        keep, ids = [], []
        for request, arm in zip(requests, arms, strict=True):
            place = self.requests.get(request)
            had = self._answers[request, arm] = self._answers.get((request, arm), 0) + 1
            # A retried request is scored again; only answers beyond one an assignment are the gateway's own doing.
            keep.append(place is not None and not 1 < had <= 1 + self._retries.get(request, 0))
            ids.append(place)
        mask = pa.array(keep, pa.bool_())
        scores = [_first(text) for text in rows["score"].to_pylist()]
        self.counts.responses += sum(keep)
        beside = rows["beside_us"] if "beside_us" in rows.column_names else _none(rows)
        is_compared = pc.fill_null(pc.not_equal(beside, NOT_COMPARED), True)
        return pa.table(
            {
                "request_id": pa.array(ids, pa.int64()),
                "arm": pa.array(arms, pa.string()),
                "ts": rows["event_time"],
                "wall_ts": rows["wall_time"],
                "latency_ms": _ms(pc.if_else(is_compared, rows["latency_us"], None)),
                "beside_ms": _ms(pc.if_else(is_compared, beside, None)),
                "status": rows["status"],
                "score": pa.array(scores, pa.float64()),
                "served": rows["served"],
                "order": pc.multiply(rows["seq"], 2),
            }
        ).filter(mask)

    def _truth_table(self, kind: str, rows: pa.Table | None, released: list[_Truth]) -> pa.Table:
        """Labels, or KPI values by metric, of this rollout's requests: the first of each; later ones are counted."""
        found = list(released)
        if rows is not None:
            rows = rows.filter(pc.equal(rows["model"], self.model))
            if kind == "label":
                rows = rows.filter(pc.equal(rows["row"], 0))
            elif self._metric_of:
                rows = rows.filter(pc.is_in(rows["name"], pa.array(list(self._metric_of), pa.string())))
            for request, at, seq, value, name in zip(
                rows["request_id"].to_pylist(),
                rows["event_time"].cast(pa.int64()).to_pylist(),
                rows["seq"].to_pylist(),
                rows["value"].to_pylist(),
                rows["name"].to_pylist() if kind == "kpi" else [None] * rows.num_rows,
                strict=True,
            ):
                place, metric = self.requests.get(request), self._metric_of.get(name)
                if place is None:
                    self._keep_back(kind, request, seq, (at, value, metric))
                else:
                    found.append(self._placed(place, at, seq, value, metric))
        fresh = []
        for place, at, seq, value, metric in found:
            key = (kind, metric, place)
            if key in self._truths:
                self.counts.repeated += 1
                self.counts.contradicting += self._truths[key] != value
                continue
            self._truths[key] = value
            fresh.append((place, at, seq, value, metric))
        if kind == "label":
            self.counts.labels += len(fresh)
        else:
            self.counts.kpis += len(fresh)
        made = {
            "request_id": pa.array([row[0] for row in fresh], pa.int64()),
            "ts": pa.array([row[1] for row in fresh], pa.int64()).cast(_STAMP),
            "order": pa.array([row[2] for row in fresh], pa.int64()),
            "label" if kind == "label" else "value": pa.array([row[3] for row in fresh], pa.float64()),
        }
        if kind == "kpi":
            made["metric"] = pa.array([row[4] for row in fresh], pa.string())
        return pa.table(made)

    def _keep_back(self, kind: str, request: str, seq: int, truth: tuple[int, float, str | None]) -> None:
        """A truth of a request not seen yet; the oldest are forgotten (most belong to requests outside the rollout)."""
        if self._first_seq is None or seq < self._first_seq:
            return
        self._early.setdefault((kind, request), []).append(truth)
        while len(self._early) > _KEPT_BACK:
            self._early.popitem(last=False)

    def _release_early(self, ids: list[str], places: list[int], early: dict[str, list[_Truth]]) -> None:
        for request, place in zip(ids, places, strict=True):
            for kind in ("label", "kpi"):
                for at, value, metric in self._early.pop((kind, request), ()):
                    early[kind].append(self._placed(place, at, 0, value, metric))

    def _placed(self, place: int, at: int, seq: int, value: float, metric: str | None) -> _Truth:
        """The truth, never ahead of the request's assignment."""
        assigned_seq, assigned_at = self._assigned[place]
        if seq > assigned_seq:
            return place, at, 2 * seq, value, metric
        return place, max(at, assigned_at), 2 * assigned_seq + 1, value, metric


def _of_rollout(rows: pa.Table, rollout_id: str) -> pa.Table:
    return rows.filter(pc.fill_null(pc.equal(rows["rollout_id"], rollout_id), False))


def _ms(micros: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.divide(pc.cast(micros, pa.float64(), safe=False), 1000.0).cast(pa.float32())


def _none(rows: pa.Table) -> pa.Array:
    """For each row of a log that is older than its column: not measured."""
    return pa.nulls(rows.num_rows, pa.float32())


def _first(text: str) -> float:
    values = _decode(text)
    return math.nan if not values or values[0] is None else float(values[0])
