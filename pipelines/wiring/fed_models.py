"""The models that a challenger's scores would reach, tried with them: what their champions would have answered.

A fed model's request bears the id of the request whose score it was given, as its own id. While both releases of the
feeding model score every request, each such request has two scores, and the fed model's champion is run on both: as
it was logged in everything else, paired, judged by the fed model's own policy.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import connect, open_lake
from pipelines.collect.fold import Fold
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import NotFoundError
from pipelines.rollout.conditions import FedModel
from pipelines.rollout.judge import judge
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Feeds, Rollout
from pipelines.settings import Settings
from pipelines.stats.evidence import Evidence
from pipelines.training.metrics import Vector
from pipelines.wiring.logged_requests import Logged, case_tables, of_rows, scores_of, with_all_inputs
from pipelines.wiring.rollout_plan import FED_STAGE
from pipelines.wiring.scoring import load_release

MOST = 50_000
"""Requests that are tried: the first ones, so that those which come later change nothing of what was judged."""
_KINDS = ("assignment", "response", "label")
_SCORED = """
    WITH scored AS (
        SELECT request_id,
               arg_min(score, seq) FILTER (WHERE arm = 'champion') AS champion,
               arg_min(score, seq) FILTER (WHERE arm = 'challenger') AS challenger,
               arg_min(score, seq) FILTER (WHERE served) AS served
        FROM response
        WHERE model = $feeding AND rollout_id = $rollout AND status = 'ok' AND seq <= $feeding_seq
        GROUP BY 1
    ), asked AS (
        SELECT request_id, event_time, inputs, slices FROM assignment
        WHERE model = $fed AND NOT duplicate AND inputs IS NOT NULL AND event_time >= $since AND seq <= $fed_seq
    ), answered AS (
        SELECT request_id, list(features ORDER BY seq) AS features FROM response
        WHERE model = $fed AND status = 'ok' AND features IS NOT NULL AND event_time >= $since AND seq <= $fed_seq
        GROUP BY 1
    ), truth AS (
        SELECT request_id, arg_max(value, seq) AS label, arg_max(event_time, seq) AS label_time FROM label
        WHERE model = $fed AND "row" = 0 AND event_time <= $now AND seq <= $fed_seq GROUP BY 1
    )
    SELECT request_id, event_time, inputs, slices, features, label, label_time, champion, challenger, served
    FROM asked JOIN answered USING (request_id) JOIN scored USING (request_id) LEFT JOIN truth USING (request_id)
    WHERE champion IS NOT NULL AND challenger IS NOT NULL AND served IS NOT NULL
    ORDER BY event_time, request_id LIMIT $most
"""


def measured(settings: Settings, rollout: Rollout, event_us: int) -> tuple[FedModel, ...]:
    """What the challenger would do to each model that it feeds; one without a champion has nothing to lose."""
    found = []
    for feeds in rollout.plan.feeds:
        champion = control_db(settings).champion(feeds.model)
        if champion is not None:
            ends = _end(settings, feeds.model), _end(settings, rollout.model)
            found.append(tried(settings, rollout, feeds, champion, ends, event_us))
    return tuple(found)


def again(settings: Settings, rollout: Rollout, recorded: FedModel) -> FedModel:
    """The same measured once more, over the same part of the logs. Raises NotFoundError for a model not in the plan."""
    for feeds in rollout.plan.feeds:
        if feeds.model == recorded.model:
            ends = recorded.fed_seq, recorded.feeding_seq
            return tried(settings, rollout, feeds, recorded.release, ends, recorded.event_us)
    raise NotFoundError("fed model", got=recorded.model, expected=[feeds.model for feeds in rollout.plan.feeds])


def tried(
    settings: Settings, rollout: Rollout, feeds: Feeds, champion: str, ends: tuple[int, int], event_us: int
) -> FedModel:
    """The fed model's champion on its requests with either score; `ends`: of its log, and of the feeding model's."""
    policy = Policy.parse(feeds.policy)
    evidence, requests, altered = Evidence(), 0, 0
    rows = _read(settings, rollout, feeds.model, ends, event_us)
    if rows is not None and (logged := of_rows(rows)) is not None:
        given = {name: _first(rows, name) for name in ("champion", "challenger", "served")}
        same = _as_served(logged, feeds.input, given["served"])
        altered = int((~same).sum())
        evidence, requests = _paired(settings, policy, feeds, champion, logged, given, same)
    judged = judge(policy, evidence, FED_STAGE)
    against = judged.stop
    return FedModel(
        model=feeds.model,
        release=champion,
        input=feeds.input,
        requests=requests,
        wanted=feeds.requests,
        altered=altered,
        word=against.action if against is not None else "continue",
        metrics=(against.metric,) if against is not None else (),
        sentence=against.sentence if against is not None else "",
        evidence=judged.evidence_digest,
        fed_seq=ends[0],
        feeding_seq=ends[1],
        event_us=event_us,
    )


def _paired(
    settings: Settings,
    policy: Policy,
    feeds: Feeds,
    champion: str,
    logged: Logged,
    given: dict[str, Vector],
    same: np.ndarray[Any, np.dtype[np.bool_]],
) -> tuple[Evidence, int]:
    """Evidence of the champion's scores with either input, and the number of pairs."""
    release = load_release(settings, champion)
    scores, kept = {}, logged
    for arm in ("champion", "challenger"):
        with_score = _with_input(logged, feeds.input, given[arm], same)
        kept, _ = with_all_inputs(with_score, {arm: release})
        if not kept.frame.num_rows:
            return Evidence(), 0
        scores[arm] = scores_of(settings, release, kept)
    fold = Fold(policy)
    fold.add(**{name: table for name, table in case_tables(policy, FED_STAGE, kept, scores).items() if table.num_rows})
    return fold.evidence(), kept.frame.num_rows


def _end(settings: Settings, model: str) -> int:
    """The last number of the model in the inference log; 0 without any."""
    lake, found = open_lake(settings), 0
    with connect() as connection:
        for kind in _KINDS:
            if lake.exists(f"inference/{kind}"):
                lake.bind(connection, kind, f"inference/{kind}")
                row = connection.execute(f"SELECT max(seq) FROM {kind} WHERE model = ?", [model]).fetchone()
                found = max(found, int(row[0]) if row and row[0] is not None else 0)
    return found


def _read(settings: Settings, rollout: Rollout, fed: str, ends: tuple[int, int], event_us: int) -> pa.Table | None:
    lake = open_lake(settings)
    if not all(lake.exists(f"inference/{kind}") for kind in ("assignment", "response")):
        return None
    with connect() as connection:
        for kind in _KINDS:
            if lake.exists(f"inference/{kind}"):
                lake.bind(connection, kind, f"inference/{kind}")
            else:
                connection.execute(_NO_LABELS)
        given = {
            "feeding": rollout.model,
            "rollout": rollout.id,
            "fed": fed,
            "since": from_us(rollout.created_event_us),
            "now": from_us(event_us),
            "fed_seq": ends[0],
            "feeding_seq": ends[1],
            "most": MOST,
        }
        return connection.execute(_SCORED, given).fetch_arrow_table()


_NO_LABELS = """
    CREATE TEMP VIEW label AS SELECT '' AS request_id, '' AS model, 0 AS "row", 0.0 AS value, 0 AS seq,
    TIMESTAMPTZ '1970-01-01' AS event_time WHERE false
"""


def _first(rows: pa.Table, name: str) -> Vector:
    """The score of each request's first row."""
    decoded = [msgspec.json.decode(text) for text in rows.column(name).to_pylist()]
    return np.array([values[0] if values and values[0] is not None else np.nan for values in decoded], dtype=np.float64)


def _as_served(logged: Logged, name: str, served: Vector) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Where the request was sent the score that was served: elsewhere the input is made of something else, too."""
    if name not in logged.frame.column_names:
        return np.zeros(len(served), dtype=bool)
    sent = logged.frame.column(name).cast(pa.float64()).to_numpy()
    return np.asarray(np.isclose(sent, served, rtol=1e-6, atol=1e-9))


def _with_input(logged: Logged, name: str, values: Vector, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> Logged:
    """The requests of the mask, with these values as that input."""
    keep = pa.array(mask)
    frame = (
        logged.frame.set_column(logged.frame.column_names.index(name), name, pa.array(values))
        if mask.any()
        else logged.frame
    )
    return Logged(
        frame.filter(keep),
        {key: column[mask] for key, column in logged.features.items()},
        logged.label[mask],
        logged.label_time.filter(keep),
        [row for row, there in zip(logged.slices, mask, strict=True) if there],
    )
