"""The judge over files of `slipway-gate/1`: the same fold and the same judge as live, asked at every tick of 128 rows.

Causal: a line with time T rests on rows with ts <= T. Deterministic: no clock, no randomness. The screening below
only finds the ticks at which something may change; what is said there, `judge` says.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.collect.fold import Fold
from pipelines.collect.row_order import KINDS
from pipelines.rollout.bars import hold_bar, live_stages, proof_bar, proof_stages, rollback_bar
from pipelines.rollout.judge import judge as judge_evidence
from pipelines.rollout.judgement import Judgement
from pipelines.rollout.policy import Metric, Policy
from pipelines.stats.evidence import HARM, PROOF, Evidence
from pipelines.stats.families import harm, proof
from pipelines.stats.latency_blocks import SUFFIX
from pipelines.stats.nats import Floats, Ints
from pipelines.stats.postings import Posting, Step

TICK = 128
"""Rows between two looks."""
_SLACK = 1e-9
"""Nats by which the screening is more generous than the judge, against rounding."""


def judge(policy: dict[str, Any], tables: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """The verdict lines of every rollout in `tables` (keys assignments, responses, labels, kpi), by rollout and time.

    `policy` is the `slipway-gate/1` mapping. Raises ContractError for a broken policy or a missing column.
    """
    parsed = Policy.parse(policy)
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


class _Screen(NamedTuple):
    """Per tick: may something have to stop, may a pause begin, are all proofs in."""

    stop: np.ndarray[Any, np.dtype[np.bool_]]
    pause: np.ndarray[Any, np.dtype[np.bool_]]
    proven: np.ndarray[Any, np.dtype[np.bool_]]


class _Ticks(NamedTuple):
    """Ticks of one rollout: last position, index of the current stage, last seq, whether a stage begins there."""

    end: Ints
    stage: Ints
    seq: Ints
    opens: np.ndarray[Any, np.dtype[np.bool_]]
    requests: Ints


def _ticks(step: Step) -> _Ticks:
    position, seq, stage = step.assigned
    opening = np.ones(len(stage), dtype=np.bool_)
    opening[1:] = stage[1:] != stage[:-1]
    regular = np.arange(step.first + TICK - 1, step.last + 1, TICK)
    end = np.unique(np.concatenate([regular, position[opening], [step.last]])).astype(np.int64)
    index = np.searchsorted(position, end, side="right") - 1
    current = np.where(index >= 0, stage[np.maximum(index, 0)], -1)
    requests = np.zeros(len(end), dtype=np.int64)
    for k in np.unique(stage):
        mine = np.searchsorted(position[stage == k], end, side="right")
        requests = np.where(current == k, mine, requests)
    return _Ticks(
        end, current, np.where(index >= 0, seq[np.maximum(index, 0)], -1), np.isin(end, position[opening]), requests
    )


def _increments(
    postings: list[Posting], ticks: _Ticks, stages: list[int], slices: int, columns: slice, policy: Policy
) -> tuple[Ints, Ints, Ints]:
    """Knots (ticks with increments) and cumulative sums there: (t,), (t, K, G) of all traffic, (t, S, K, G) of
    slices.
    """
    count = len(policy.stages)
    telling: list[tuple[Posting, Ints]] = []
    for posting in postings:
        bearing = posting
        if posting.classes is not None and posting.table is not None:
            bears: np.ndarray[Any, np.dtype[np.bool_]] = np.any(posting.table[:, columns] != 0, axis=1)
            keep = bears[posting.classes]
            if not keep.all():
                bearing = posting.only(keep)
        telling.append((bearing, np.searchsorted(ticks.end, bearing.position, side="left")))
    knots = np.unique(np.concatenate([tick for _, tick in telling])) if telling else np.zeros(0, dtype=np.int64)
    width = columns.stop - columns.start
    whole = np.zeros((len(knots), count, width), dtype=np.int64)
    parts = np.zeros((len(knots), slices, count, width), dtype=np.int64)
    for posting, tick in telling:
        place = np.searchsorted(knots, tick)
        whole += posting.grouped(place * count + posting.stage, len(knots) * count, columns).reshape(whole.shape)
        for column in posting.parts.T if slices else ():
            group = np.where(column >= 0, (place * slices + column) * count + posting.stage, -1)
            parts += posting.grouped(group, len(knots) * slices * count, columns).reshape(parts.shape)
    return knots, whole.cumsum(axis=0)[:, stages], parts.cumsum(axis=0)[:, :, stages]


def _screen(policy: Policy, step: Step, ticks: _Ticks) -> _Screen:
    """Where e-values pass their bars, vectorised over all ticks."""
    size = len(ticks.end)
    stop, pause = np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_)
    proven = np.ones(size, dtype=np.bool_)
    sticky = policy.unit == "unit"
    names = [stage.name for stage in policy.stages]
    by_metric: dict[str, list[Posting]] = {}
    for posting in step.postings:
        by_metric.setdefault(posting.metric, []).append(posting)

    def family(name: str, stages: tuple[str, ...], bar: float, *, slices: int, sticky: bool = sticky) -> Ints:
        """Ticks at which the family's e-value stands at its bar or above."""
        live = [names.index(stage) for stage in stages]
        if name not in by_metric or not live or not math.isfinite(bar):
            return np.zeros(0, dtype=np.int64)
        knots, whole, parts = _increments(by_metric[name], ticks, live, slices, HARM, policy)
        if not len(knots):
            return knots
        # A slice counts from its first observation on, as it does live; before it, its factor is one either way.
        log_e = _family_log_e(by_metric[name], ticks, knots, whole, parts, policy, sticky=sticky)
        return knots[log_e >= math.log(bar) - _SLACK]

    for check in policy.integrity:
        stop[family(check, live_stages(policy, check), hold_bar(policy), slices=len(step.slices))] = True
    for metric in policy.metrics:
        if metric.role == "report":
            continue
        bar = rollback_bar(policy, metric)
        loud = family(metric.name, live_stages(policy, metric), bar, slices=len(step.slices))
        (pause if metric.kind == "quantile" else stop)[loud] = True
        if metric.kind == "quantile":
            stop[family(metric.name + SUFFIX, live_stages(policy, metric), bar, slices=0, sticky=False)] = True
    for name in policy.require:
        proven &= _proven(policy, policy.metric(name), by_metric.get(name, []), ticks, names)
    stop |= _gapped(step, ticks)
    return _Screen(stop, pause, proven)


def _family_log_e(
    postings: list[Posting], ticks: _Ticks, knots: Ints, whole: Ints, parts: Ints, policy: Policy, *, sticky: bool
) -> Floats:
    """The family's log e-value at each knot, with as many slices as have been seen by then."""
    slices = parts.shape[1]
    if slices < 2:
        return harm(whole, parts[:, :0], max_slices=policy.max_slices, sticky=sticky).log_e
    seen_at = np.full(slices, len(ticks.end), dtype=np.int64)
    for posting in postings:
        tick = np.searchsorted(ticks.end, posting.position, side="left")
        for column in posting.parts.T:
            np.minimum.at(seen_at, column[column >= 0], tick[column >= 0])
    log_e = np.zeros(len(knots))
    order = np.sort(seen_at)
    seen = np.searchsorted(order, knots, side="right")
    for number in np.unique(seen):
        rows = seen == number
        # Slices not seen yet have only zeros: leaving out as many of them as are missing is leaving out those.
        kept = np.flatnonzero(seen_at <= knots[rows].max())
        log_e[rows] = harm(whole[rows], parts[rows][:, kept], max_slices=policy.max_slices, sticky=sticky).log_e
    return log_e


def _proven(
    policy: Policy, metric: Metric, postings: list[Posting], ticks: _Ticks, names: list[str]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    live = [names.index(stage) for stage in proof_stages(policy, metric)]
    result = np.zeros(len(ticks.end), dtype=np.bool_)
    if not postings or not live:
        return result
    knots, whole, _ = _increments(postings, ticks, live, 0, PROOF, policy)
    if not len(knots):
        return result
    good = proof(whole, sticky=policy.unit == "unit") >= math.log(proof_bar(policy)) - _SLACK
    latest = np.searchsorted(knots, np.arange(len(ticks.end)), side="right") - 1
    result[latest >= 0] = good[latest[latest >= 0]]
    return result


def _gapped(step: Step, ticks: _Ticks) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Ticks at which new gaps in the sequence of assignments came up: the judge looks whether they are too many."""
    result = np.zeros(len(ticks.end), dtype=np.bool_)
    for count in step.counts:
        if count.name == "gaps" and count.amount is not None:
            result[np.searchsorted(ticks.end, count.position[count.amount > 0], side="left")] = True
    return result


def _replay(policy: Policy, rollout_id: int, tables: dict[str, pa.Table | None]) -> list[dict[str, Any]]:
    fold = Fold(policy)
    step = fold.step({kind: tables.get(kind) for kind in KINDS})
    if not len(step.assigned[0]):
        return []
    ticks = _ticks(step)
    screen = _screen(policy, step, ticks)
    last_stage = len(policy.stages) - 1
    least = policy.stages[last_stage].requests
    open_end = (
        screen.proven & (ticks.stage == last_stage) & (ticks.requests >= (least if least is not None else 1 << 62))
    )
    wanted = np.flatnonzero(ticks.opens | screen.stop | screen.pause | open_end)

    lines: list[dict[str, Any]] = []
    evidence, done = Evidence(), step.first - 1
    paused: str | None = None
    quiet_until, patience = -1, 1
    final = len(ticks.end) - 1
    for t in [*wanted[wanted < final].tolist(), final]:
        # The last row ends the look-out whether a tick ends there or not; only ticks may speak before the last line.
        regular = bool(ticks.opens[t]) or (int(ticks.end[t]) + 1) % TICK == 0
        if t != final and t < quiet_until and not ticks.opens[t]:
            continue
        step.into(evidence, done, int(ticks.end[t]))
        done = int(ticks.end[t])
        name = policy.stages[int(ticks.stage[t])].name
        found = judge_evidence(policy, evidence, name)
        line = _Line(rollout_id, _stamp(int(step.watermark_us[done - step.first])), int(ticks.seq[t]), name, found)
        verdict = _ending(policy, found, at_end=t == final)
        if verdict is not None and (verdict != "inconclusive" or not regular):
            stop = found.stop
            return [*lines, line.of(verdict, stop.metric if stop else None, stop.slice if stop else None, final=True)]
        pause = found.pause.metric if found.pause is not None else None
        if regular and (ticks.opens[t] or (pause is not None and paused is None)):
            lines.append(
                line.of("continue", pause, found.pause.slice if found.pause is not None else None, final=False)
            )
            paused, patience = pause, 1
        else:
            # An e-value above its bar without practical harm stays there for long: look again after a growing while.
            quiet_until, patience = t + patience, min(2 * patience, 64)
        if t == final:
            lines.append(line.of("inconclusive", None, None, final=True))
    return lines


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
