"""Reads the inference log in the lake: what one release was asked, what it answered, and what turned out to be true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.contracts.clocks import from_us
from pipelines.contracts.events import metric_by_name
from pipelines.monitoring.columns import Category, Column, Numbers, Window
from pipelines.rollout.base_rates import Answers

Value = float | int | str | bool | None

_QUERY = """
    WITH answered AS (
        SELECT request_id, score, features
        FROM response WHERE model = $model AND release = $release AND status <> 'error'
        QUALIFY row_number() OVER (PARTITION BY request_id ORDER BY seq) = 1
    ), truth AS (
        SELECT request_id, to_json(map(list("row"), list(value))) AS labels
        FROM (SELECT request_id, "row", arg_min(value, seq) AS value FROM label
              WHERE model = $model AND event_time <= $as_of GROUP BY ALL) GROUP BY request_id
    )
    SELECT assignment.inputs, answered.score, answered.features, truth.labels
    FROM assignment JOIN answered USING (request_id) LEFT JOIN truth USING (request_id)
    WHERE assignment.model = $model AND NOT assignment.duplicate
      AND assignment.event_time >= $start AND assignment.event_time < $end
    ORDER BY assignment.seq
"""

_ANSWERS = """
    WITH answered AS (
        SELECT request_id, arg_min(status, seq) AS status, arg_min(score, seq) AS score,
               arg_min(latency_us, seq) AS latency_us
        FROM response WHERE model = $model AND release = $release AND NOT shadow AND event_time < $before GROUP BY 1
    ), truth AS (
        SELECT request_id, arg_min(value, seq) AS value, arg_min(event_time, seq) AS at
        FROM label WHERE model = $model AND "row" = 0 AND event_time <= $before GROUP BY 1
    ), named AS (
        SELECT unnest($names::VARCHAR[]) AS name, unnest($metrics::VARCHAR[]) AS metric
    ), cost AS (
        SELECT request_id, map(list(metric), list(value)) AS value, map(list(metric), list(came)) AS came FROM (
            SELECT request_id, coalesce(metric, '') AS metric, arg_min(value, seq) AS value,
                   arg_min(event_time, seq) AS came
            FROM kpi LEFT JOIN named USING (name)
            WHERE model = $model AND event_time <= $before AND (len($names) = 0 OR metric IS NOT NULL)
            GROUP BY 1, 2
        ) GROUP BY 1
    )
    SELECT epoch_us(assignment.event_time), answered.status <> 'ok', answered.score, answered.latency_us / 1000.0,
           truth.value, cost.value, assignment.unit, assignment.slices,
           epoch_us(coalesce(truth.at, assignment.event_time)),
           epoch_us(coalesce(cost.came[$first], assignment.event_time))
    FROM assignment JOIN answered USING (request_id)
    LEFT JOIN truth USING (request_id) LEFT JOIN cost USING (request_id)
    WHERE assignment.model = $model AND NOT assignment.duplicate AND assignment.event_time < $before
    ORDER BY assignment.event_time DESC, assignment.seq DESC LIMIT $most
"""
_EMPTY = """
    SELECT '' AS model, '' AS request_id, '' AS name, 0 AS "row", 0.0 AS value, 0 AS seq, now() AS event_time
    WHERE false
"""


class Served(msgspec.Struct, frozen=True):
    """Rows that one release scored, in the collector's order.

    `label` is NaN where no truth had arrived. `sampled` marks the rows whose payload was logged: `columns` hold those
    alone, by name; features are those read online, under `<view>.<feature>`.
    """

    columns: dict[str, list[Value]]
    score: Numbers
    label: Numbers
    sampled: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        return int(self.score.size)

    @property
    def sampled_share(self) -> float:
        """Of the rows; 1 when there are none."""
        return float(self.sampled.mean()) if self.rows else 1.0


def served(lake: DeltaLake, model: str, release: str, window: Window, as_of_us: int) -> Served:
    """What `release` scored for requests of the window (event time), with the labels known at `as_of_us`."""
    tables = {kind: f"inference/{kind}" for kind in ("assignment", "response", "label")}
    if not (lake.exists(tables["assignment"]) and lake.exists(tables["response"])):
        return Served({}, np.empty(0), np.empty(0), np.empty(0, dtype=np.bool_))
    with connect() as connection:
        for kind, table in tables.items():
            if lake.exists(table):
                lake.bind(connection, kind, table)
            else:
                connection.execute(f"CREATE VIEW {kind} AS {_EMPTY}")
        found = connection.execute(
            _QUERY,
            {
                "model": model,
                "release": release,
                "start": from_us(window.start_us),
                "end": from_us(window.end_us),
                "as_of": from_us(as_of_us),
            },
        ).fetchall()
    return _flattened(found)


def answers(
    lake: DeltaLake, model: str, release: str, before_us: int, kpis: Sequence[str] = (), most: int = 50_000
) -> Answers:
    """The newest `most` requests that `release` was to answer before an event time, and what was known then: of KPI
    values, those that count for each of these mean metrics of a policy (without any, all as those of one).
    """
    kinds = ("assignment", "response", "label", "kpi")
    if not (lake.exists("inference/assignment") and lake.exists("inference/response")):
        nothing = np.empty(0)
        return Answers(np.empty(0, np.int64), np.empty(0, bool), nothing, nothing, nothing, nothing)
    with connect() as connection:
        for kind in kinds:
            if lake.exists(f"inference/{kind}"):
                lake.bind(connection, kind, f"inference/{kind}")
            else:
                connection.execute(f"CREATE VIEW {kind} AS {_EMPTY}")
        counted, first = metric_by_name(kpis), kpis[0] if kpis else ""
        given = {"model": model, "release": release, "before": from_us(before_us), "most": most, "first": first}
        given |= {"names": list(counted), "metrics": list(counted.values())}
        found = connection.execute(_ANSWERS, given).fetchall()[::-1]
    scores = [msgspec.json.decode(row[2]) for row in found]
    return Answers(
        np.array([row[0] for row in found], dtype=np.int64),
        np.array([row[1] for row in found], dtype=np.bool_),
        _numbers(score[0] if score else None for score in scores),
        latency_ms=_numbers(row[3] for row in found),
        label=_numbers(row[4] for row in found),
        kpi=_numbers((row[5] or {}).get(first) for row in found),
        by_kpi={name: _numbers((row[5] or {}).get(name) for row in found) for name in kpis},
        unit=[row[6] for row in found],
        slices=[_slices(row[7]) for row in found],
        label_us=[row[8] for row in found],
        kpi_us=[row[9] for row in found],
    )


def _slices(text: str | None) -> dict[str, str]:
    """The slices of a request, by name; those it lies in."""
    told: dict[str, str | None] = msgspec.json.decode(text) if text else {}
    return {name: value for name, value in told.items() if value is not None}


def columns(reference: Served, current: Served) -> list[Column]:
    """The columns of both windows, by name. A column with text or truth values anywhere is one of categories."""
    return [
        _column(name, reference.columns.get(name, []), current.columns.get(name, []))
        for name in sorted({*reference.columns, *current.columns})
    ]


def _column(name: str, reference: list[Value], current: list[Value]) -> Column:
    if any(isinstance(value, str | bool) for side in (reference, current) for value in side):
        return Column(name, [_category(value) for value in reference], [_category(value) for value in current])
    return Column(name, _numbers(reference), _numbers(current))


def _category(value: Value) -> Category:
    return value if value is None or isinstance(value, str | bool) else str(value)


def _numbers(values: Iterable[Value]) -> Numbers:
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _flattened(found: list[tuple[Any, ...]]) -> Served:
    """One entry a row of each request; a column that a sampled request lacks is missing in its rows."""
    columns: dict[str, list[Value]] = {}
    scores: list[float] = []
    labels: list[float] = []
    sampled: list[bool] = []
    columned = 0
    decode = msgspec.json.decode
    for inputs, score, features, label in found:
        answers: list[float | None] = decode(score)
        truth: dict[str, float] = decode(label) if label else {}
        scores += [np.nan if answer is None else answer for answer in answers]
        labels += [truth.get(str(row), np.nan) for row in range(len(answers))]
        is_sampled = inputs is not None and features is not None
        sampled += [is_sampled] * len(answers)
        if not is_sampled:
            continue
        read = {
            f"{view.partition('__')[0]}.{name}": values
            for view, names, _, lists in decode(features)
            for name, values in zip(names, lists, strict=True)
        }
        for name, values in {**decode(inputs), **read}.items():
            kept = columns.setdefault(name, [])
            kept.extend([None] * (columned - len(kept)))
            kept.extend(values if len(values) == len(answers) else [None] * len(answers))
        columned += len(answers)
    for values in columns.values():
        values.extend([None] * (columned - len(values)))
    return Served(
        columns,
        np.asarray(scores, dtype=np.float64),
        np.asarray(labels, dtype=np.float64),
        np.asarray(sampled, dtype=np.bool_),
    )
