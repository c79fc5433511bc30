"""Responses, labels and KPI values find their open requests; the first of each counts, the others are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.collect.open_requests import OpenRequests
from pipelines.collect.request_columns import (
    ARMS,
    CHALLENGER,
    CHAMPION,
    ERROR,
    INVALID,
    OK,
    Bools,
    Requests,
    arms,
    drawn,
)
from pipelines.collect.row_order import Rows, codes, floats, plain
from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.stats.nats import Ints
from pipelines.stats.postings import Count, Step

_EACH = -2
"""In the place of a metric's index: the value is of every one."""


def respond(requests: OpenRequests, policy: Policy, part: Rows, first: int, lost_at: Ints, step: Step) -> None:
    """Fills the first answer of each arm of each open request."""
    held = requests.rows
    rows, request = _match(requests, part, first, np.where(held["closed"], np.int64(-1), lost_at), step)
    table, at = part.table, part.position[rows] + first
    arm, status = arms(table, ARMS[:2])[rows], _status(policy, table)[rows]
    score, latency = floats(table["score"])[rows], floats(table["latency_ms"])[rows]
    if "served" in table.column_names:
        # The champion answered in the challenger's place: the challenger had failed, whether it said so or not.
        served = np.asarray(pc.fill_null(table["served"], False).to_numpy(zero_copy_only=False), dtype=np.bool_)[rows]
        stood_in = served & (arm == CHAMPION) & (held["arm"][request] == CHALLENGER) & drawn(held)[request]
        _answer(held, request[stood_in], at[stood_in], CHALLENGER)
    opening = _opening(request * 2 + arm, 2 * len(requests)) & ~held["own"][request, arm]
    held["doubled"][request[~opening], arm[~opening]] = True
    order = np.flatnonzero(opening)
    r, a, at = request[opening], arm[opening], at[opening]
    held["own"][r, a] = True
    # A failure that the stand-in has told of already stays a failure.
    free = at < held["answered"][r, a]
    r, a, order, at = r[free], a[free], order[free], at[free]
    held["status"][r, a] = status[order]
    held["answered"][r, a] = at
    held["score"][r, a] = score[order]
    held["latency"][r, a] = latency[order]
    if "beside_ms" in table.column_names:
        held["beside"][r, 1 - a] = floats(table["beside_ms"])[rows][order]


def attach_labels(requests: OpenRequests, part: Rows, first: int, closes: Ints, step: Step) -> None:
    """Fills the first label of each request up to its position in `closes` (-1: settled).

    Repeats and NaN are counted.
    """
    held = requests.rows
    _attach(requests, part, ("label", "label"), (held["label"], held["labelled"]), first, closes, step)


def attach_kpis(
    requests: OpenRequests, part: Rows, metrics: tuple[str, ...], first: int, closes: Ints, step: Step
) -> None:
    """The same for KPI values, of each of `metrics` the first. A row is of the one that its column `metric` names;
    without that column, and with null in it, of all of them. Raises ContractError for another name.
    """
    held = requests.rows
    of = _metrics(part.table, metrics)
    for k in range(max(1, len(metrics))):
        keep = (of == k) | (of == _EACH)
        mine = Rows(part.table.filter(pa.array(keep)), part.position[keep], part.ts[keep])
        # What is of each is counted once.
        counted = step if k == 0 or not (of == _EACH).all() else step._replace(counts=[])
        into = (held["kpi"][:, k], held["has_kpi"][:, k])
        _attach(requests, mine, ("value", "kpi"), into, first, closes, counted)


def _metrics(table: pa.Table, metrics: tuple[str, ...]) -> Ints:
    """(n,) index in `metrics` of the one that each value is of, or `_EACH`."""
    if "metric" not in table.column_names:
        return np.full(table.num_rows, _EACH, dtype=np.int64)
    found = codes(table["metric"], list(metrics))
    wrong = (found < 0) & np.asarray(table["metric"].is_valid())
    if wrong.any():
        got = repr(table["metric"][int(np.argmax(wrong))].as_py())
        raise ContractError("metric of a KPI value", got=got, expected=f"one of {list(metrics)}, or null")
    return np.where(found < 0, _EACH, found)


def _attach(
    requests: OpenRequests,
    part: Rows,
    names: tuple[str, str],
    into: tuple[np.ndarray[Any, Any], Bools],
    first: int,
    closes: Ints,
    step: Step,
) -> None:
    """`names`: the table's column, and what its counts are called; `into`: values by request, and which are there."""
    (column, value), (values, known) = names, into
    held = requests.rows
    rows, request = _match(requests, part, first, closes, step)
    at, given = part.position[rows] + first, floats(part.table[column])[rows]
    finite = np.isfinite(given)
    step.counts.append(Count(f"{value}_not_finite", at[~finite], held["stage"][request[~finite]]))
    at, given, request = at[finite], given[finite], request[finite]
    opening = _opening(request, len(requests)) & ~known[request]
    values[request[opening]] = given[opening]
    known[request[opening]] = True
    again, later = request[~opening], at[~opening]
    step.counts.append(Count(f"{value}_repeated", later, held["stage"][again]))
    differs = values[again] != given[~opening]
    step.counts.append(Count(f"{value}_contradicted", later[differs], held["stage"][again[differs]]))


def _match(requests: OpenRequests, part: Rows, first: int, closes: Ints, step: Step) -> tuple[Ints, Ints]:
    """(row of the table, open request) of the rows that belong to a request still open at their position."""
    at = part.position + first
    found = requests.find(plain(part.table["request_id"]))
    fits = found >= 0
    fits[fits] &= (at[fits] > requests.rows["pos"][found[fits]]) & (at[fits] <= closes[found[fits]])
    stray = np.flatnonzero(~fits)
    step.counts.append(Count("stray", at[stray], np.zeros(len(stray), dtype=np.int64)))
    rows = np.flatnonzero(fits)
    return rows, found[rows]


def _answer(held: Requests, request: Ints, at: Ints, arm: int) -> None:
    """Marks `arm` as failed at the first of the positions `at`, unless it has answered before."""
    opening = _opening(request, len(held["pos"]))
    request, at = request[opening], at[opening]
    free = at < held["answered"][request, arm]
    held["status"][request[free], arm] = ERROR
    held["answered"][request[free], arm] = at[free]


def _opening(codes: Ints, size: int) -> Bools:
    """Marks the first row of each code below `size`; rows come in order of position."""
    first = np.empty(size, dtype=np.int64)
    index = np.arange(len(codes))
    first[codes[::-1]] = index[::-1]
    opening: Bools = first[codes] == index
    return opening


def _status(policy: Policy, table: pa.Table) -> Ints:
    """ok, error or invalid: an `ok` whose score is null, NaN, infinite or out of range is invalid."""
    given = codes(table["status"], ["ok", "error", "invalid"])
    score = floats(table["score"])
    good = np.isfinite(score)
    if policy.score_range is not None:
        low, high = policy.score_range
        good &= (score >= low) & (score <= high)
    return np.where(given == 0, np.where(good, OK, INVALID), np.where(given == 2, INVALID, ERROR)).astype(np.int64)
