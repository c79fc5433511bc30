"""The backtest: what the challenger would have answered to requests whose truth is known by now.

Both arms are run over the same logged inputs and the features as they were logged; views that were not logged come by
point-in-time join. Only requests after the last label that either release was fitted on count. The result are the four
tables of `slipway-gate/1`; where there is nothing to judge they are empty and say why.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pipelines.adapters.delta_lake import connect, open_lake
from pipelines.contracts.clocks import from_us
from pipelines.rollout.frozen_policy import frozen_policy
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring.logged_requests import STAMP, Logged, case_tables, of_rows, scores_of, with_all_inputs
from pipelines.wiring.scoring import load_release

NO_DATA = b"no_data"
LEAST = 500
MOST = 20_000

_LOGGED = """
    WITH asked AS (
        SELECT request_id, event_time, inputs, slices FROM assignment
        WHERE model = $model AND NOT duplicate AND inputs IS NOT NULL AND event_time > $after AND event_time <= $until
    ), answered AS (
        SELECT request_id, list(features ORDER BY seq) AS features FROM response
        WHERE model = $model AND status = 'ok' AND features IS NOT NULL
          AND event_time > $after AND event_time <= $until GROUP BY 1
    ), truth AS (
        SELECT request_id, arg_max(value, seq) AS label, arg_max(event_time, seq) AS label_time FROM label
        WHERE model = $model AND "row" = 0 AND event_time <= $known GROUP BY 1
    )
    SELECT request_id, event_time, inputs, slices, features, label, label_time
    FROM asked JOIN answered USING (request_id) JOIN truth USING (request_id)
    ORDER BY event_time DESC, request_id LIMIT $most
"""


_SAMPLED = """
    SELECT avg((inputs IS NOT NULL)::INT) FROM assignment
    WHERE model = $model AND NOT duplicate AND event_time > $after AND event_time <= $until
"""


def backtest(settings: Settings, rollout: Rollout) -> dict[str, pa.Table]:
    """`assignments`, `responses`, `labels`, `kpi` of the rollout's backtest stage.

    Without enough to judge, all are empty and the schema metadata of `assignments` has the reason (`no_data_reason`).
    """
    policy = frozen_policy(rollout)
    if rollout.champion is None:
        return _nothing(policy, "there is no champion to compare with")
    stage = rollout.current
    least = stage.requests or LEAST
    arms = {
        "champion": load_release(settings, rollout.champion),
        "challenger": load_release(settings, rollout.challenger),
    }
    after_us = max(int(release.manifest.training.get("last_label_us", 0)) for release in arms.values())
    until_us = rollout.created_event_us - round(policy.label_maturity_s * 1_000_000)
    logged, share = _read(settings, rollout, after_us, until_us)
    sampled = f"; payloads of {share:.1%} of the requests are logged" if share < 1 else ""
    wanted = "with a label that is mature"
    if after_us:
        wanted += f", newer than the trainings' last one ({from_us(after_us).isoformat(timespec='minutes')})"
    if logged is None:
        return _nothing(policy, f"the inference log has no answered request {wanted}{sampled}")
    kept, missing = with_all_inputs(logged, arms)
    count = kept.frame.num_rows
    if count < least:
        reason = f"{count} logged requests {wanted}; {least} are needed{sampled}"
        return _nothing(policy, f"{reason}; the log lacks {missing}" if missing else reason)
    scores = {arm: scores_of(settings, release, kept) for arm, release in arms.items()}
    return case_tables(policy, stage.name, kept, scores)


def no_data_reason(tables: Mapping[str, pa.Table]) -> str | None:
    """Why a backtest has nothing to judge; None when it has."""
    reason = (tables["assignments"].schema.metadata or {}).get(NO_DATA)
    return reason.decode() if reason is not None else None


def _read(settings: Settings, rollout: Rollout, after_us: int, until_us: int) -> tuple[Logged | None, float]:
    """The requests whose payload is logged, None without any, and their share of all."""
    lake = open_lake(settings)
    kinds = ("assignment", "response", "label")
    if not all(lake.exists(f"inference/{kind}") for kind in kinds):
        return None, 1.0
    with connect() as connection:
        for kind in kinds:
            lake.bind(connection, kind, f"inference/{kind}")
        given = {
            "model": rollout.model,
            "after": from_us(after_us),
            "until": from_us(until_us),
            "known": from_us(rollout.created_event_us),
            "most": MOST,
        }
        rows = connection.execute(_LOGGED, given).fetch_arrow_table()
        among = {name: given[name] for name in ("model", "after", "until")}
        (share,) = connection.execute(_SAMPLED, among).fetchone() or (None,)
    share = 1.0 if share is None else float(share)
    rows = rows.sort_by([("event_time", "ascending"), ("request_id", "ascending")])
    return of_rows(rows), share


def _nothing(policy: Policy, reason: str) -> dict[str, pa.Table]:
    empty = pa.table({"event_timestamp": pa.array([], STAMP)})
    logged = Logged(empty, {}, np.empty(0), pa.chunked_array([pa.array([], STAMP)]), [])
    tables = case_tables(policy, "backtest", logged, {"champion": np.empty(0), "challenger": np.empty(0)})
    tables["assignments"] = tables["assignments"].replace_schema_metadata({NO_DATA: reason.encode()})
    return tables
