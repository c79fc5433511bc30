"""Assignments become open requests: first of their id, with stage, slices, unit, deadlines and warm-up settled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.collect.open_requests import OpenRequests
from pipelines.collect.request_columns import ARMS, CHALLENGER, CHAMPION, Bools, Requests, arms, drawn, empty
from pipelines.collect.row_order import Rows, codes, floats, micros, plain
from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.stats.nats import Ints
from pipelines.stats.postings import Count, Step


class Admission:
    """Takes in a rollout's assignments. `slices`: labels of the slices seen so far, in order of appearance."""

    def __init__(self, policy: Policy, requests: OpenRequests) -> None:
        self.slices: list[str] = []
        self._policy = policy
        self._requests = requests
        self._stages = tuple(stage.name for stage in policy.stages)
        self._slice_code: dict[str, int] = {}
        self._started: dict[object, int] = {}
        self._unit_code: dict[object, int] = {}

    def open(self, part: Rows, event: Ints, wall: Ints, first: int, step: Step) -> Requests:
        """Opens the requests of the batch; returns them. The last element of `event` and of `wall` is the watermark
        that the batch met: position 0 finds it at index -1. Raises ContractError for a stage, an arm or a table that
        the policy does not know.
        """
        table, position, policy = part.table, part.position, self._policy
        ids = plain(table["request_id"])
        stage = codes(table["stage"], list(self._stages))
        if (stage < 0).any():
            policy.stage(str(table["stage"][int(np.argmin(stage))].as_py()))
        keep = self._first_seen(ids)
        step.counts.append(Count("retries", position[~keep] + first, stage[~keep]))

        fresh = empty(len(ids), len(policy.slices), max(1, len(policy.kpis)))
        fresh["ts"][:] = part.ts
        fresh["pos"][:] = position + first
        fresh["stage"][:] = stage
        fresh["arm"][:] = arms(table, ARMS)
        fresh["share"][:] = floats(table["share"])
        # A worker whose segments come late brings its answers with them: its deadlines run from the watermark it met.
        met_wall, met_event = wall[position - 1], event[position - 1]
        own_wall = micros(table["wall_ts"]) if "wall_ts" in table.column_names else part.ts
        fresh["wall"][:] = np.maximum(own_wall, met_wall)
        fresh["deadline"][:] = fresh["wall"] + round(policy.response_deadline_s * 1e6) + 1
        given, label_s, kpi_s = np.maximum(part.ts, met_event), policy.label_maturity_s, policy.kpi_maturity_s
        fresh["due"][:] = given + round(label_s * 1e6)
        fresh["kpi_due"][:] = given + round((label_s if kpi_s is None else kpi_s) * 1e6)
        fresh["warm"][:] = self._warm(table, keep)
        if policy.unit == "unit":
            fresh["unit"][:] = self._units(table)
        for column, name in enumerate(policy.slices):
            fresh["parts"][:, column] = self._slice_codes(table, name)
        if not keep.all():
            fresh = {name: values[keep] for name, values in fresh.items()}
            ids = ids.filter(pa.array(keep))
        self._requests.append(ids, fresh)

        step.counts.append(Count("requests", fresh["pos"], fresh["stage"]))
        mine = drawn(fresh)
        for arm, name in ((CHAMPION, "champion"), (CHALLENGER, "exposed")):
            mask = mine & (fresh["arm"] == arm)
            step.counts.append(Count(name, fresh["pos"][mask], fresh["stage"][mask]))
        step.counts.append(Count("warmup", fresh["pos"][fresh["warm"]], fresh["stage"][fresh["warm"]]))
        return fresh

    def _first_seen(self, ids: pa.Array) -> Bools:
        """False for a request id that is open already or was seen before in this batch."""
        values = np.asarray(ids.to_numpy(zero_copy_only=False))
        values = values.astype(str) if values.dtype == object else values
        keep = np.ones(len(ids), dtype=np.bool_)
        if not (values[1:] > values[:-1]).all():
            keep[:] = False
            keep[np.unique(values, return_index=True)[1]] = True
        keep &= self._requests.find(ids) < 0
        return keep

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
                    self._slice_code[label] = len(self.slices)
                    self.slices.append(label)
                lookup[index] = self._slice_code[label]
        found: Ints = lookup[pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)]
        return found
