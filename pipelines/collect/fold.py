"""Rows in the collector's order -> Evidence.

Every increment is fixed by rows at or before its position in the order, and by nothing else: not by how the rows were
cut into batches, not by a clock. What a bet needs from the past (latency cuts, the KPI's centre) is frozen per block
of 500.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.collect.open_requests import OpenRequests
from pipelines.collect.row_order import Rows, codes, floats, merge, micros, plain
from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Metric, Policy
from pipelines.stats import bets, tables
from pipelines.stats.centre import RunningCentre, RunningRate
from pipelines.stats.cuts import RunningCuts
from pipelines.stats.evidence import BETTER, HARM, PROOF, WIDTH, Evidence
from pipelines.stats.latency_blocks import MARGIN, LatencyBlocks
from pipelines.stats.losses import loss_range, loss_values
from pipelines.stats.nats import Floats, Ints, quantise, quantise_up
from pipelines.stats.postings import Count, Posting, Step

_FAR = np.int64(1) << 62
_NONE, _OK, _ERROR, _INVALID = 0, 1, 2, 3
_CHAMPION, _CHALLENGER, _BOTH = 0, 1, 2
_ARMS = ["champion", "challenger", "both"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Open = dict[str, np.ndarray[Any, Any]]

_FIELDS: dict[str, tuple[Any, Any]] = {
    # name: (dtype, value of a request just assigned)
    "deadline": (np.int64, 0),
    "due": (np.int64, 0),
    "wall": (np.int64, 0),
    "ts": (np.int64, 0),
    "pos": (np.int64, 0),
    "stage": (np.int64, 0),
    "arm": (np.int64, 0),
    "share": (np.float64, np.nan),
    "unit": (np.int64, 0),
    "warm": (np.bool_, False),
    "closed": (np.bool_, False),
    "label": (np.float64, np.nan),
    "labelled": (np.bool_, False),
    "kpi": (np.float64, np.nan),
    "has_kpi": (np.bool_, False),
    "settled": (np.bool_, False),
}


class Fold:
    """Incremental fold of one rollout's rows.

    `add` takes one batch of rows in the collector's order, `evidence()` gives the sum so far. Cutting the same
    ordered rows into other batches gives the same evidence, byte for byte.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._stages = tuple(stage.name for stage in policy.stages)
        self._evidence = Evidence()
        self._slices: list[str] = []
        self._slice_code: dict[str, int] = {}
        self._next = 0
        self._event_mark = -_FAR
        self._wall_mark = -_FAR
        self._started: dict[object, int] = {}
        self._last_seq: int | None = None
        self._unit_code: dict[object, int] = {}
        self._bet_units: dict[str, Ints] = {}
        self._requests = OpenRequests(self._empty)
        latencies = [metric for metric in policy.metrics if metric.kind == "quantile"]
        self._cuts = RunningCuts([cast("float", metric.q) for metric in latencies])
        self._blocks = LatencyBlocks([metric.name for metric in latencies], policy.response_deadline_s)
        self._rates = {metric.name: RunningRate() for metric in policy.metrics if metric.kind == "event"}
        self._centres = {metric.name: RunningCentre() for metric in policy.metrics if metric.kind == "mean"}

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
        champion's served answer to a request of the challenger is the challenger's error); `process` on assignments
        (warm-up is counted per process start); every column named in `policy.slices` on assignments; `unit_id` when
        the policy randomises units. `request_id` is int64 or string. Raises ContractError for a missing column, an
        unknown stage.
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
        step = Step([], [], first, mark, at, (none, none, none), None, self._stages, self._slices)
        if not size:
            return step
        for part in rows.values():
            step.row_us[part.position] = part.ts
        met = (self._event_mark, self._wall_mark)
        event, wall = self._watermarks(rows, size)
        step.watermark_us[:] = event
        self._next += size

        if "assignments" in rows:
            fresh = self._assign(rows["assignments"], np.append(event, met[0]), np.append(wall, met[1]), first, step)
            part = rows["assignments"]
            seq = part.table["seq"].to_numpy().astype(np.int64)
            assigned = (part.position + first, seq, codes(part.table["stage"], list(self._stages)))
            step = step._replace(first_us=int(part.ts.min()), assigned=assigned)
            self._sample_ratio(fresh, step)
        lost_at = self._crossing(wall, self._open["deadline"], first, done=self._open["closed"])
        due_at = self._crossing(event, self._open["due"], first, done=self._open["settled"])
        if "responses" in rows:
            self._respond(rows["responses"], first, lost_at, step)
        self._lose(lost_at, step)
        for kind, value, flag, column in (("labels", "label", "labelled", "label"), ("kpi", "kpi", "has_kpi", "value")):
            if kind in rows:
                self._attach(rows[kind], column, value, flag, first, due_at, step)
        self._settle(due_at, step)
        step.postings.extend(self._blocks.close(wall, first, len(self._policy.slices)))
        self._compact(lost_at, due_at)
        return step

    @property
    def _open(self) -> Open:
        return self._requests.rows

    # --- positions and deadlines ----------------------------------------------------------------------------------

    def _watermarks(self, rows: dict[str, Rows], size: int) -> tuple[Ints, Ints]:
        """Running maxima of event time and wall time by position, the past included."""
        event = np.empty(size, dtype=np.int64)
        wall = np.full(size, -_FAR, dtype=np.int64)
        two_clocks = any("wall_ts" in part.table.column_names for part in rows.values())
        for part in rows.values():
            event[part.position] = part.ts
            if "wall_ts" in part.table.column_names:
                wall[part.position] = micros(part.table["wall_ts"])
            elif not two_clocks:
                wall[part.position] = part.ts
        event = np.maximum(np.maximum.accumulate(event), self._event_mark)
        wall = np.maximum(np.maximum.accumulate(wall), self._wall_mark)
        self._event_mark, self._wall_mark = event[-1], wall[-1]
        return event, wall

    @staticmethod
    def _crossing(mark: Ints, limit: Ints, first: int, *, done: Bools) -> Ints:
        """The position at which the watermark `mark` reaches each limit; far away when it does not in this batch."""
        place = np.searchsorted(mark, limit, side="left").astype(np.int64)
        return np.where(done | (place >= len(mark)), _FAR, place + first)

    # --- assignments ----------------------------------------------------------------------------------------------

    def _empty(self, size: int) -> Open:
        fresh: Open = {name: np.full(size, value, dtype=dtype) for name, (dtype, value) in _FIELDS.items()}
        fresh["parts"] = np.full((size, len(self._policy.slices)), -1, dtype=np.int64)
        fresh["status"] = np.zeros((size, 2), dtype=np.int64)
        fresh["answered"] = np.full((size, 2), _FAR, dtype=np.int64)
        fresh["score"] = np.full((size, 2), np.nan)
        fresh["latency"] = np.full((size, 2), np.nan)
        fresh["own"] = np.zeros((size, 2), dtype=np.bool_)
        fresh["doubled"] = np.zeros((size, 2), dtype=np.bool_)
        return fresh

    def _assign(self, part: Rows, event: Ints, wall: Ints, first: int, step: Step) -> Open:
        """Opens the requests of the batch; returns them. The last element of `event` and of `wall` is the watermark
        that the batch met: position 0 finds it at index -1.
        """
        table, position = part.table, part.position
        ids = plain(table["request_id"])
        stage = codes(table["stage"], list(self._stages))
        if (stage < 0).any():
            self._policy.stage(str(table["stage"][int(np.argmin(stage))].as_py()))
        keep = self._first_seen(ids)
        step.counts.append(Count("retries", position[~keep] + first, stage[~keep]))
        self._gaps(table["seq"].to_numpy().astype(np.int64), position + first, stage, step)

        fresh = self._empty(len(ids))
        fresh["ts"][:] = part.ts
        fresh["pos"][:] = position + first
        fresh["stage"][:] = stage
        fresh["arm"][:] = self._arms(table, _ARMS)
        fresh["share"][:] = floats(table["share"])
        # A worker whose segments come late brings its answers with them: its deadlines run from the watermark it met.
        met_wall, met_event = wall[position - 1], event[position - 1]
        own_wall = micros(table["wall_ts"]) if "wall_ts" in table.column_names else part.ts
        fresh["wall"][:] = own_wall
        fresh["deadline"][:] = np.maximum(own_wall, met_wall) + round(self._policy.response_deadline_s * 1e6) + 1
        fresh["due"][:] = np.maximum(part.ts, met_event) + round(self._policy.label_maturity_s * 1e6)
        fresh["warm"][:] = self._warm(table, keep)
        if self._policy.unit == "unit":
            fresh["unit"][:] = self._units(table)
        for column, name in enumerate(self._policy.slices):
            fresh["parts"][:, column] = self._slice_codes(table, name)
        if not keep.all():
            fresh = {name: values[keep] for name, values in fresh.items()}
            ids = ids.filter(pa.array(keep))
        self._requests.append(ids, fresh)

        step.counts.append(Count("requests", fresh["pos"], fresh["stage"]))
        drawn = self._drawn(fresh)
        for arm, name in ((_CHAMPION, "champion"), (_CHALLENGER, "exposed")):
            mask = drawn & (fresh["arm"] == arm)
            step.counts.append(Count(name, fresh["pos"][mask], fresh["stage"][mask]))
        step.counts.append(Count("warmup", fresh["pos"][fresh["warm"]], fresh["stage"][fresh["warm"]]))
        return fresh

    def _first_seen(self, ids: pa.Array) -> Bools:
        """False for a request id that is open already or was seen before in this batch."""
        keep = np.zeros(len(ids), dtype=np.bool_)
        values = np.asarray(ids.to_numpy(zero_copy_only=False))
        keep[np.unique(values.astype(str) if values.dtype == object else values, return_index=True)[1]] = True
        keep &= self._requests.find(ids) < 0
        return keep

    def _gaps(self, seq: Ints, position: Ints, stage: Ints, step: Step) -> None:
        """Sequence numbers left out are lost assignments; one that comes later takes its gap back."""
        before = np.concatenate([[seq[0] - 1 if self._last_seq is None else self._last_seq], seq[:-1]])
        highest = np.maximum.accumulate(np.concatenate([before[:1], seq]))
        missing = np.where(seq > highest[:-1], seq - highest[:-1] - 1, -1)
        self._last_seq = int(highest[-1])
        step.counts.append(Count("gaps", position, stage, missing))

    def _warm(self, table: pa.Table, keep: Bools) -> Bools:
        """Whether each row lies in the warm-up window of its process (of the rollout when no process is named)."""
        limit = self._policy.warmup_requests
        if "process" not in table.column_names:
            seen = self._started.get(None, 0)
            self._started[None] = seen + int(keep.sum())
            return (seen + np.cumsum(keep) - keep) < limit
        warm = np.zeros(len(keep), dtype=np.bool_)
        for row, process in enumerate(table["process"].to_pylist()):
            seen = self._started.get(process, 0)
            warm[row] = seen < limit
            self._started[process] = seen + int(keep[row])
        return warm

    def _units(self, table: pa.Table) -> Ints:
        if "unit_id" not in table.column_names:
            raise ContractError(
                "table assignments", got="no unit_id", expected="a column unit_id: the policy draws units"
            )
        values = plain(table["unit_id"])
        if pa.types.is_integer(values.type):
            return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.int64)
        return np.array(
            [self._unit_code.setdefault(v, len(self._unit_code)) for v in values.to_pylist()], dtype=np.int64
        )

    def _slice_codes(self, table: pa.Table, name: str) -> Ints:
        if name not in table.column_names:
            return np.full(table.num_rows, -1, dtype=np.int64)
        encoded = plain(table[name]).dictionary_encode()
        many = len(self._policy.slices) > 1
        # Dictionary order follows the rows, and so the collector's order: codes do not depend on how rows were cut.
        lookup = np.full(len(encoded.dictionary) + 1, -1, dtype=np.int64)
        for index, value in enumerate(encoded.dictionary.to_pylist()):
            if value is not None:
                label = f"{name}={value}" if many else str(value)
                if label not in self._slice_code:
                    self._slice_code[label] = len(self._slices)
                    self._slices.append(label)
                lookup[index] = self._slice_code[label]
        found: Ints = lookup[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
        return found

    def _drawn(self, rows: Open) -> Bools:
        """Whether the arm of each request was drawn, so that one may bet on it."""
        share = rows["share"]
        return cast("Bools", (rows["arm"] != _BOTH) & (share > 0.0) & (share < 1.0))

    # --- bets on classes ------------------------------------------------------------------------------------------

    def _fresh_units(self, family: str, rows: Open, wanted: Bools) -> Bools:
        """Of the `wanted` rows (in order of position), the first of each unit and stage in this family."""
        if self._policy.unit == "request":
            return wanted
        key = rows["unit"] * np.int64(len(self._stages)) + rows["stage"]
        place = np.flatnonzero(wanted)
        unique, index = np.unique(key[place], return_index=True)
        held = self._bet_units.get(family, np.zeros(0, dtype=np.int64))
        new = ~np.isin(unique, held)
        self._bet_units[family] = np.concatenate([held, unique[new]])
        result = np.zeros(len(wanted), dtype=np.bool_)
        result[place[index[new]]] = True
        return result

    def _post(
        self, metric: str, rows: Open, at: Ints, kind: Ints, table_of: Any, *, bet_on: Bools | None
    ) -> list[Posting]:
        """Postings of rows (in order of position `at`) by share; `bet_on` marks the rows that carry a harm bet."""
        if not len(at):
            return []
        everything = np.ones(len(at), dtype=np.bool_)
        harm = self._fresh_units(f"{metric}/harm", rows, everything if bet_on is None else bet_on)
        proof = self._fresh_units(f"{metric}/proof", rows, everything)
        if self._policy.unit == "unit":
            idle = everything if bet_on is None else bet_on
            kind = kind + tables.NO_HARM_BET * (idle & ~harm) + tables.NO_PROOF_BET * ~proof
        postings = []
        shares = np.where(self._drawn(rows), rows["share"], np.nan)
        for share in np.unique(shares):
            mask = np.isnan(shares) if np.isnan(share) else shares == share
            table = table_of(None if np.isnan(share) else float(share))
            if table is not None:
                postings.append(
                    Posting(
                        metric, at[mask], rows["stage"][mask], rows["parts"][mask], kind[mask].astype(np.int64), table
                    )
                )
        return postings

    def _sample_ratio(self, fresh: Open, step: Step) -> None:
        if "sample_ratio" not in self._policy.integrity:
            return
        rows = _take(fresh, self._drawn(fresh))
        kind = 3 * (rows["arm"] == _CHALLENGER)
        step.postings.extend(self._post("sample_ratio", rows, rows["pos"], kind, tables.assignments, bet_on=None))

    # --- responses ------------------------------------------------------------------------------------------------

    def _match(self, part: Rows, first: int, closes: Ints, step: Step) -> tuple[Ints, Ints]:
        """(row of the table, open request) of the rows that belong to a request still open at their position."""
        at = part.position + first
        found = self._requests.find(plain(part.table["request_id"]))
        fits = found >= 0
        fits[fits] &= (at[fits] > self._open["pos"][found[fits]]) & (at[fits] <= closes[found[fits]])
        stray = np.flatnonzero(~fits)
        step.counts.append(Count("stray", at[stray], np.zeros(len(stray), dtype=np.int64)))
        rows = np.flatnonzero(fits)
        return rows, found[rows]

    def _respond(self, part: Rows, first: int, lost_at: Ints, step: Step) -> None:
        """Fills the first answer of each arm of each open request."""
        held = self._open
        rows, request = self._match(part, first, np.where(held["closed"], np.int64(-1), lost_at), step)
        table, at = part.table, part.position[rows] + first
        arm, status = self._arms(table, _ARMS[:2])[rows], self._status(table)[rows]
        score, latency = floats(table["score"])[rows], floats(table["latency_ms"])[rows]
        if "served" in table.column_names:
            # The champion answered in the challenger's place: the challenger had failed, whether it said so or not.
            served = np.asarray(pc.fill_null(table["served"], False).to_numpy(zero_copy_only=False), dtype=np.bool_)[
                rows
            ]
            stood_in = served & (arm == _CHAMPION) & (held["arm"][request] == _CHALLENGER) & self._drawn(held)[request]
            self._answer(request[stood_in], at[stood_in], _CHALLENGER)
        slot = request * 2 + arm
        order = np.lexsort((at, slot))
        slot, at, request, arm = slot[order], at[order], request[order], arm[order]
        opening = np.ones(len(slot), dtype=np.bool_)
        opening[1:] = slot[1:] != slot[:-1]
        opening &= ~held["own"][request, arm]
        held["doubled"][request[~opening], arm[~opening]] = True
        r, a, order, at = request[opening], arm[opening], order[opening], at[opening]
        held["own"][r, a] = True
        # A failure that the stand-in has told of already stays a failure.
        free = at < held["answered"][r, a]
        r, a, order, at = r[free], a[free], order[free], at[free]
        held["status"][r, a] = status[order]
        held["answered"][r, a] = at
        held["score"][r, a] = score[order]
        held["latency"][r, a] = latency[order]
        self._answered(first, step)

    def _answer(self, request: Ints, at: Ints, arm: int) -> None:
        """Marks `arm` as failed at the first of the positions `at`, unless it has answered before."""
        order = np.lexsort((at, request))
        request, at = request[order], at[order]
        opening = np.ones(len(request), dtype=np.bool_)
        opening[1:] = request[1:] != request[:-1]
        request, at = request[opening], at[opening]
        free = at < self._open["answered"][request, arm]
        self._open["status"][request[free], arm] = _ERROR
        self._open["answered"][request[free], arm] = at[free]

    @staticmethod
    def _arms(table: pa.Table, known: list[str]) -> Ints:
        arm = codes(table["arm"], known)
        if (arm < 0).any():
            wrong = table["arm"][int(np.argmin(arm))].as_py()
            raise ContractError("arm", got=repr(wrong), expected="one of " + ", ".join(known))
        return arm

    def _status(self, table: pa.Table) -> Ints:
        """ok, error or invalid: an `ok` whose score is null, NaN, infinite or out of range is invalid."""
        given = codes(table["status"], ["ok", "error", "invalid"])
        score = floats(table["score"])
        good = np.isfinite(score)
        if self._policy.score_range is not None:
            low, high = self._policy.score_range
            good &= (score >= low) & (score <= high)
        return np.where(given == 0, np.where(good, _OK, _INVALID), np.where(given == 2, _INVALID, _ERROR)).astype(
            np.int64
        )

    def _answered(self, first: int, step: Step) -> None:
        """Judges what the answers of this batch show: errors, invalid scores, latency, and pairs of scores."""
        held = self._open
        drawn = self._drawn(held)
        index = np.arange(len(drawn))
        mine = held["answered"][index, np.where(drawn, held["arm"], 0)]
        both = held["answered"].max(axis=1)
        known = np.where(drawn, mine, both)
        fresh = np.flatnonzero((known >= first) & (known < _FAR) & ~held["warm"])
        fresh = fresh[np.lexsort((held["pos"][fresh], known[fresh]))]
        rows, at = _take(held, fresh), known[fresh]
        for metric in self._policy.metrics:
            if metric.kind == "event":
                self._events(metric, rows, at, step)
        self._latencies(rows, at, step)
        paired = [metric for metric in self._policy.metrics if metric.kind in ("paired_mean", "paired_abs")]
        if paired:
            pairs = np.flatnonzero(
                (both >= first) & (both < _FAR) & ~held["warm"] & (held["status"] == _OK).all(axis=1)
            )
            pairs = pairs[np.lexsort((held["pos"][pairs], both[pairs]))]
            for metric in paired:
                self._paired_scores(metric, _take(held, pairs), both[pairs], step)

    def _pair_class(self, rows: Open, outcome: Bools) -> Ints:
        """Class of (n, 2) outcomes by arm: `2 * challenger + event` for a drawn arm, `2 * e1 + e0` for pairs."""
        drawn = self._drawn(rows)
        arm = np.where(drawn, rows["arm"], 0)
        mine = outcome[np.arange(len(arm)), arm]
        return np.where(drawn, 2 * arm + mine, 2 * outcome[:, 1] + outcome[:, 0]).astype(np.int64)

    def _telling(self, rows: Open, kind: Ints) -> Bools:
        """Whether a class says anything of the arms: an event where the arm was drawn, a discordant pair elsewhere."""
        return cast("Bools", np.where(self._drawn(rows), kind % 2 == 1, (kind == 1) | (kind == 2)))

    def _events(self, metric: Metric, rows: Open, at: Ints, step: Step) -> None:
        outcome = rows["status"] == (_ERROR if metric.event == "error" else _INVALID)
        kind = self._pair_class(rows, outcome)
        margin = metric.promote_margin_abs
        champion = ~self._drawn(rows) | (rows["arm"] == _CHAMPION)
        rate = self._rates[metric.name].take(outcome[:, 0], champion)
        levels = tables.CLASSES * tables.caution(rate, margin)

        def table_of(share: float | None) -> Ints:
            return tables.paired_events(margin) if share is None else tables.assigned_events(share, margin)

        telling = self._telling(rows, kind)
        step.postings.extend(self._post(metric.name, rows, at, kind + levels, table_of, bet_on=telling))

    def _latencies(self, rows: Open, at: Ints, step: Step) -> None:
        metrics = [metric for metric in self._policy.metrics if metric.kind == "quantile"]
        if not metrics:
            return
        drawn = self._drawn(rows)
        fine = (rows["status"] == _OK) & np.isfinite(rows["latency"])
        index = np.arange(len(at))
        usable = np.where(drawn, fine[index, np.where(drawn, rows["arm"], 0)], fine.all(axis=1))
        rows, at, drawn = _take(rows, usable), at[usable], drawn[usable]
        latency = rows["latency"]
        champion = np.where(drawn & (rows["arm"] == _CHALLENGER), np.nan, latency[:, 0])
        cuts = self._cuts.take(champion)
        for column, metric in enumerate(metrics):
            cut = cuts[:, column]
            ready = ~np.isnan(cut)
            part, when, above = _take(rows, ready), at[ready], latency[ready] > cut[ready][:, None]
            assert metric.q is not None
            q = metric.q
            harm = self._pair_class(part, above)

            def harm_table(share: float | None, q: float = q) -> Ints:
                return tables.paired_exceedances(q) if share is None else tables.assigned_exceedances(q, share)

            step.postings.extend(self._post(metric.name, part, when, harm, harm_table, bet_on=None))
            if metric.harm_ratio is not None:
                # The second key: is the challenger still slower once the practical margin is taken off its latency?
                beyond = self._pair_class(
                    part, part["latency"] / np.array([1.0, metric.harm_ratio]) > cut[ready][:, None]
                )
                step.postings.extend(
                    self._post(metric.name + MARGIN, part, when, beyond, tables.exceedance_counts, bet_on=None)
                )
            margin = metric.promote_margin_rel
            if margin is not None:
                scaled = part["latency"] / np.array([1.0, 1.0 + margin]) > cut[ready][:, None]
                proof = self._pair_class(part, scaled)

                def proof_table(share: float | None, q: float = q) -> Ints | None:
                    return None if share is None else tables.scaled_exceedances(q, share)

                step.postings.extend(self._post(metric.name, part, when, proof, proof_table, bet_on=None))
            mine = self._drawn(part)
            arm = part["arm"][mine]
            seen = above[mine][np.arange(len(arm)), arm].astype(np.int64)
            self._blocks.take(column, part["wall"][mine], part["stage"][mine], arm, seen)

    def _paired_scores(self, metric: Metric, rows: Open, at: Ints, step: Step) -> None:
        """Shift (signed) or disagreement (absolute) of the scores of one request, with a bet where a tolerance is
        given.
        """
        one, zero = rows["score"][:, 1], rows["score"][:, 0]
        effect = np.abs(one - zero) if metric.kind == "paired_abs" else one - zero
        posting = _moments(metric.name, rows, at, one, zero, effect)
        increments, bounds = posting.rows, self._policy.score_range
        assert increments is not None
        relative, absolute = metric.tolerance_rel or 0.0, metric.tolerance_abs or 0.0
        if bounds is not None and relative + absolute > 0.0:
            level = max(abs(bounds[0]), abs(bounds[1]))
            allowed = absolute + relative * np.abs(zero)
            largest = absolute + relative * level
            if metric.kind == "paired_abs":
                increments[:, HARM] = bets.mean_factors(effect - allowed, largest)
            else:
                largest += bounds[1] - bounds[0]
                half = HARM.start + (HARM.stop - HARM.start) // 2
                increments[:, HARM.start : half] = bets.mean_factors(effect - allowed, largest)[:, ::2]
                increments[:, half : HARM.stop] = bets.mean_factors(-effect - allowed, largest)[:, ::2]
        self._silence(f"{metric.name}/scores", rows, increments)
        step.postings.append(posting)

    # --- deadlines ------------------------------------------------------------------------------------------------

    def _lose(self, lost_at: Ints, step: Step) -> None:
        """At the deadline: which arm stayed silent, which answered twice. The warm-up is not spared."""
        chosen = np.flatnonzero(lost_at < _FAR)
        chosen = chosen[np.lexsort((self._open["pos"][chosen], lost_at[chosen]))]
        rows, at = _take(self._open, chosen), lost_at[chosen]
        # A request that went to one arm alone, without a draw, compares nothing: its failures are only counted.
        alone = ~self._drawn(rows) & (rows["arm"] != _BOTH)
        asked = np.where(alone, rows["arm"], 0)
        for name, outcome in (("lost_responses", rows["status"] == _NONE), ("duplicates", rows["doubled"])):
            mine = outcome[np.arange(len(asked)), asked]
            single = alone & mine
            step.counts.append(Count(name, at[single], rows["stage"][single]))
        rows, at = _take(rows, ~alone), at[~alone]
        for name, outcome in (("lost_responses", rows["status"] == _NONE), ("duplicates", rows["doubled"])):
            kind = self._pair_class(rows, outcome)
            if name in self._policy.integrity:
                step.postings.extend(
                    self._post(name, rows, at, kind, _integrity_table, bet_on=self._telling(rows, kind))
                )
            counted = np.where(self._drawn(rows), kind % 2 == 1, kind > 0)
            step.counts.append(Count(name, at[counted], rows["stage"][counted]))

    def _attach(self, part: Rows, column: str, value: str, flag: str, first: int, due_at: Ints, step: Step) -> None:
        """Fills the first label (or KPI) of each request that is not settled; repeats and NaN are counted."""
        held = self._open
        rows, request = self._match(part, first, np.where(held["settled"], np.int64(-1), due_at), step)
        at, given = part.position[rows] + first, floats(part.table[column])[rows]
        finite = np.isfinite(given)
        step.counts.append(Count(f"{value}_not_finite", at[~finite], held["stage"][request[~finite]]))
        at, given, request = at[finite], given[finite], request[finite]
        order = np.lexsort((at, request))
        at, given, request = at[order], given[order], request[order]
        opening = np.ones(len(request), dtype=np.bool_)
        opening[1:] = request[1:] != request[:-1]
        opening &= ~held[flag][request]
        held[value][request[opening]] = given[opening]
        held[flag][request[opening]] = True
        again, later = request[~opening], at[~opening]
        step.counts.append(Count(f"{value}_repeated", later, held["stage"][again]))
        differs = held[value][again] != given[~opening]
        step.counts.append(Count(f"{value}_contradicted", later[differs], held["stage"][again[differs]]))

    def _settle(self, due_at: Ints, step: Step) -> None:
        """At maturity, in request order: paired losses and KPIs. A request without a label is counted and left out."""
        chosen = np.flatnonzero(due_at < _FAR)
        chosen = chosen[np.lexsort((self._open["pos"][chosen], due_at[chosen]))]
        rows, at = _take(self._open, chosen), due_at[chosen]
        labelled = rows["labelled"]
        step.counts.append(Count("labelled", at[labelled], rows["stage"][labelled]))
        step.counts.append(Count("unlabelled", at[~labelled], rows["stage"][~labelled]))
        both = (rows["status"] == _OK).all(axis=1) & (rows["answered"] <= at[:, None]).all(axis=1)
        pairs = labelled & both & ~rows["warm"]
        step.counts.append(Count("pairs", at[pairs], rows["stage"][pairs]))
        for metric in self._policy.metrics:
            if metric.kind == "paired_loss":
                self._paired_loss(metric, _take(rows, pairs), at[pairs], step)
            elif metric.kind == "mean":
                known = rows["has_kpi"]
                if metric is next(m for m in self._policy.metrics if m.kind == "mean"):
                    step.counts.append(Count("kpis", at[known], rows["stage"][known]))
                wanted = known & ~rows["warm"]
                self._mean(metric, _take(rows, wanted), at[wanted], step)

    def _silence(self, family: str, rows: Open, increments: Ints) -> None:
        """With sticky units, only the first observation of a unit in a stage is bet on."""
        if self._policy.unit == "unit":
            first = self._fresh_units(family, rows, np.ones(len(increments), dtype=np.bool_))
            increments[~first, HARM.start :] = 0

    def _paired_loss(self, metric: Metric, rows: Open, at: Ints, step: Step) -> None:
        clip, cap = metric.clip, metric.cap
        one = loss_values(metric.loss, rows["score"][:, 1], rows["label"], clip=clip, cap=cap)
        zero = loss_values(metric.loss, rows["score"][:, 0], rows["label"], clip=clip, cap=cap)
        least, most = loss_range(metric.loss, clip=clip, cap=cap)
        posting = _moments(metric.name, rows, at, one, zero, one - zero)
        increments = posting.rows
        assert increments is not None
        increments[:, HARM] = bets.mean_factors(one - zero, most - least)
        increments[:, BETTER] = bets.mean_factors(zero - one, most - least)
        if metric.provable:
            # Against "the challenger loses the margin or more": E[one - (1 + rel) zero - abs] >= 0.
            relative, absolute = metric.promote_margin_rel or 0.0, metric.promote_margin_abs or 0.0
            worse = one - (1.0 + relative) * zero - absolute
            increments[:, PROOF] = bets.mean_factors(-worse, most - (1.0 + relative) * least - absolute)
        self._silence(f"{metric.name}/loss", rows, increments)
        step.postings.append(posting)

    def _mean(self, metric: Metric, rows: Open, at: Ints, step: Step) -> None:
        assert metric.range is not None
        low, high = metric.range
        value = np.clip(rows["kpi"], low, high)
        drawn = self._drawn(rows)
        challenger = drawn & (rows["arm"] == _CHALLENGER)
        centre = self._centres[metric.name].take(quantise(value), rows["arm"] != _CHALLENGER)
        outside = rows["kpi"] != value
        step.counts.append(Count("kpi_out_of_range", at[outside], rows["stage"][outside]))
        rows, at, value = _take(rows, drawn), at[drawn], value[drawn]
        centre, challenger, share = centre[drawn], challenger[drawn], rows["share"]
        ready = ~np.isnan(centre)
        middle = np.where(ready, centre, 0.5 * (low + high))
        signed = np.where(challenger, 1.0 / share, -1.0 / (1.0 - share))
        effect = signed * (value - middle)
        posting = _moments(
            metric.name, rows, at, np.where(challenger, value, 0.0), np.where(challenger, 0.0, value), effect
        )
        increments = posting.rows
        assert increments is not None
        increments[:, tables.N1] = challenger
        increments[:, tables.N0] = ~challenger
        # Gain is positive when the challenger is better, whatever the direction of the metric.
        sign = 1.0 if metric.better == "higher" else -1.0
        reach = np.maximum(high - middle, middle - low) / np.minimum(share, 1.0 - share)
        increments[:, HARM] = bets.mean_factors(-sign * effect, reach)
        increments[:, BETTER] = bets.mean_factors(sign * effect, reach)
        if metric.provable:
            relative, absolute = metric.promote_margin_rel or 0.0, metric.promote_margin_abs or 0.0
            # E[gain] = sign (mu1 - (1 - sign rel) mu0) + abs, centred on the champion's past mean.
            keep = np.where(challenger, 1.0, 1.0 - sign * relative)
            gain = sign * (keep * effect + sign * relative * middle) + absolute
            increments[:, PROOF] = bets.mean_factors(gain, reach * max(1.0, 1.0 + relative) + relative * np.abs(middle))
        increments[~ready, HARM.start :] = 0
        self._silence(f"{metric.name}/mean", rows, increments)
        step.postings.append(posting)

    # --- end of a batch -------------------------------------------------------------------------------------------

    def _compact(self, lost_at: Ints, due_at: Ints) -> None:
        """Forgets requests of which nothing can come any more."""
        self._open["closed"] |= lost_at < _FAR
        self._open["settled"] |= due_at < _FAR
        self._requests.forget(self._open["closed"] & self._open["settled"])


def _integrity_table(share: float | None) -> Ints:
    return tables.paired_events(None) if share is None else tables.assigned_events(share, None)


def _take(rows: Open, keep: Any) -> Open:
    return {name: values[keep] for name, values in rows.items()}


def _moments(metric: str, rows: Open, at: Ints, one: Floats, zero: Floats, effect: Floats) -> Posting:
    """A posting of n pairs: the outcomes of both arms and their effect, no bets yet."""
    increments = np.zeros((len(at), WIDTH), dtype=np.int64)
    increments[:, [tables.N, tables.N1, tables.N0]] = 1
    increments[:, tables.Y1], increments[:, tables.Y0] = quantise(one), quantise(zero)
    increments[:, tables.S], increments[:, tables.V] = quantise(effect), quantise_up(effect * effect)
    return Posting(metric, at, rows["stage"], rows["parts"], rows=increments)
