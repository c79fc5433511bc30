"""The judge over files of `slipway-gate/1`: the same fold and the same judge as live, after every row.

Causal: a line with time T rests on rows with ts <= T. Deterministic: no clock, no randomness. `screening` finds the
rows at which something may change; what is said there, `judge` says.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.collect.fold import Fold
from pipelines.collect.row_order import KINDS
from pipelines.rollout.case_rows import check_rows
from pipelines.rollout.judge import judge as judge_evidence
from pipelines.rollout.judgement import Judgement
from pipelines.rollout.policy import Policy
from pipelines.rollout.screening import Cause, Rows, causes_to_look
from pipelines.stats.block_sums import BLOCK
from pipelines.stats.evidence import Evidence
from pipelines.stats.nats import Ints

_PATIENCE = 16
"""Blocks of rows after which a cause that brought no decision is looked at again, at most."""


def judge(
    policy: dict[str, Any], tables: Mapping[str, pa.Table], *, names: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The verdict lines of every rollout in `tables` (keys assignments, responses, labels, kpi), by rollout and time.

    `policy` is the `slipway-gate/1` mapping. Raises PolicyError for a broken policy, ContractError with table, row and
    column for rows that are not as the format has them; `names` are what errors call the tables.
    """
    parsed = Policy.parse(policy)
    check_rows(parsed, tables, names or {})
    lines: list[dict[str, Any]] = []
    for rollout_id, part in _rollouts(tables):
        lines.extend(_replay(parsed, rollout_id, part))
    return lines


def _rollouts(tables: Mapping[str, pa.Table]) -> Iterator[tuple[int, dict[str, pa.Table | None]]]:
    """The tables cut by `rollout_id`, ascending; without the column all rows are one rollout, number 0."""
    given = {kind: tables[kind] for kind in KINDS if tables.get(kind) is not None and tables[kind].num_rows}
    if not given:
        return
    if "rollout_id" not in given.get("assignments", next(iter(given.values()))).column_names:
        yield 0, dict(given)
        return
    ids: dict[str, Ints] = {}
    ordered: dict[str, pa.Table] = {}
    for kind, table in given.items():
        values = table["rollout_id"].to_numpy().astype(np.int64)
        if bool(np.any(values[1:] < values[:-1])):
            order = np.argsort(values, kind="stable")
            ids[kind], ordered[kind] = values[order], table.take(pa.array(order))
        else:
            ids[kind], ordered[kind] = values, table
    for rollout_id in np.unique(np.concatenate(list(ids.values()))).tolist():
        part: dict[str, pa.Table | None] = {}
        for kind, values in ids.items():
            low, high = np.searchsorted(values, [rollout_id, rollout_id + 1])
            part[kind] = ordered[kind].slice(low, high - low)
        yield rollout_id, part


class _Schedule:
    """The next row to look at. A cause that brought no decision is not looked at again for a growing while: an e-value
    above its bar without practical harm stays there for long.
    """

    def __init__(self, opens: Ints, causes: list[Cause]) -> None:
        self._causes: list[Cause] = [Rows(opens), *causes]
        self._patience = [0] + [1] * len(causes)
        self._next = [cause.row_from(0) for cause in self._causes]

    def row(self, last: int) -> int:
        """The next row, `last` when there is none before it."""
        return min([*(row for row in self._next if row is not None), last])

    def looked(self, row: int) -> bool:
        """Takes note of a look at `row`; whether it was called for."""
        met = [k for k, at in enumerate(self._next) if at == row]
        for k in met:
            self._next[k] = self._causes[k].row_from(row + max(BLOCK * self._patience[k], 1))
            self._patience[k] = min(2 * self._patience[k], _PATIENCE)
        return bool(met)


def _replay(policy: Policy, rollout_id: int, tables: dict[str, pa.Table | None]) -> list[dict[str, Any]]:
    step = Fold(policy).step({kind: tables.get(kind) for kind in KINDS})
    position, seq, stage = step.assigned
    if not len(position):
        return []
    opening = position[np.r_[True, stage[1:] != stage[:-1]]]
    schedule = _Schedule(opening, causes_to_look(policy, step))
    last = np.flatnonzero(stage == len(policy.stages) - 1)
    # The last stage lasts at least its minimum; the others end where the rows say.
    least_us = int(step.row_us[position[last[0]] - step.first]) if len(last) else 0
    least_us += round((policy.stages[-1].min_event_time_s or 0.0) * 1e6)
    lines: list[dict[str, Any]] = []
    evidence, done = Evidence(), step.first - 1
    paused: str | None = None
    while True:
        row = schedule.row(step.last)
        called = schedule.looked(row)
        step.into(evidence, done, row)
        done = row
        latest = max(int(np.searchsorted(position, row, side="right")) - 1, 0)
        name = policy.stages[int(stage[latest])].name
        found = judge_evidence(policy, evidence, name)
        line = _Line(rollout_id, _stamp(int(step.watermark_us[row - step.first])), int(seq[latest]), name, found)
        verdict = _ending(policy, found, at_end=row == step.last)
        if verdict == "promote" and int(step.watermark_us[row - step.first]) < least_us:
            verdict = "inconclusive" if row == step.last else None
        if verdict is not None and verdict != "inconclusive":
            stop = found.stop
            return [*lines, line.of(verdict, stop.metric if stop else None, stop.slice if stop else None, final=True)]
        pause = found.pause
        if called and (row in opening or (pause is not None and paused is None)):
            paused = pause.metric if pause is not None else None
            lines.append(line.of("continue", paused, pause.slice if pause is not None else None, final=False))
        if row == step.last:
            return [*lines, line.of("inconclusive", None, None, final=True)]


def _ending(policy: Policy, found: Judgement, *, at_end: bool) -> str | None:
    """The decision that ends a rollout, None while it goes on: stops first, then promotion after the last stage."""
    if found.stop is not None:
        return found.stop.action
    last = policy.stages[-1]
    whole = found.stage == last.name and (at_end if last.requests is None else found.stage_complete)
    if whole and not found.missing and found.pause is None:
        return "promote"
    return "inconclusive" if at_end else None


class _Line(NamedTuple):
    rollout_id: int
    ts: str
    seq: int
    stage: str
    found: Judgement

    def of(self, verdict: str, metric: str | None, part: str | None, *, final: bool) -> dict[str, Any]:
        """The output line of a decision, with the numbers of the metric that decided."""
        found, numbers = self.found, dict.fromkeys(("e_value", "threshold", "estimate", "lower", "upper"))
        body: dict[str, Any] = dict(numbers)
        for one in found.verdicts:
            if one.metric == metric:
                body = {name: getattr(one, name) for name in numbers}
        decided = found.stop or found.pause
        if decided is not None and decided.metric == metric:
            body |= {"e_value": decided.e_value, "threshold": decided.threshold}
        return {
            "rollout_id": self.rollout_id,
            "ts": self.ts,
            "seq": self.seq,
            "stage": self.stage,
            "verdict": verdict,
            "metric": metric,
            "slice": part,
            **body,
            "exposed": found.exposed,
            "final": final,
            "missing": list(found.missing) if verdict == "inconclusive" else [],
        }


def _stamp(micros: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
