"""Three judges with the mistakes that are made most often, behind the interface of `pipelines.rollout.offline.judge`.

The check that the gates pass must fail them: else it would find nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.proof.rules import Served, served, z_test
from pipelines.rollout.policy import Policy
from pipelines.stats import bets
from pipelines.stats.mixture import log_mean_exp
from pipelines.stats.nats import to_nats


def peeking_z_test(_policy: dict[str, Any], tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """A z-test at 1 % on each metric, looked at again and again as if each look were the only one."""
    seen = served(tables)
    for metric in ("error", "latency", "kpi"):
        at, z = z_test(seen, metric)
        if (z > 2.326).any():
            return _ended("rollback", metric, seen, int(at[np.argmax(z > 2.326)]))
    return _ended("promote", None, seen, len(seen.minute) - 1)


def labels_as_they_arrive(policy: dict[str, Any], tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """An e-value against "the challenger's scores are calibrated", on labels in order of arrival.

    The bets are right; the order is not: where one class is known sooner, the labels so far are no sample.
    """
    answers = tables["responses"]
    arm = answers["arm"].combine_chunks().cast(pa.string()).to_numpy(zero_copy_only=False)
    score = np.full(tables["assignments"].num_rows, np.nan)
    mine = arm == "challenger"
    score[answers["request_id"].to_numpy()[mine]] = answers["score"].to_numpy()[mine]
    gap = tables["labels"]["label"].to_numpy() - score[tables["labels"]["request_id"].to_numpy()]
    gap = gap[np.isfinite(gap)]
    both = np.hstack([to_nats(bets.mean_factors(sign * gap, 1.0)).cumsum(axis=0) for sign in (1.0, -1.0)])
    loud = log_mean_exp(both, axis=-1) >= np.log(1.0 / Policy.parse(policy).budget.rollback)
    seen = served(tables)
    return _ended("rollback" if loud.any() else "promote", "calibration" if loud.any() else None, seen, 0)


def champion_not_concurrent(_policy: dict[str, Any], tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """A z-test at one in a thousand, at the end of each stage, of the challenger against all the champion has served
    since the ramp began.
    """
    seen = served(tables)
    for stage in np.unique(seen.stage):
        upto = int(np.flatnonzero(seen.stage == stage)[-1])
        for metric in ("error", "latency", "kpi"):
            value, one = seen.values[metric][: upto + 1], seen.challenger[: upto + 1]
            known = np.isfinite(value)
            x1, x0 = value[one & known], value[~one & known]
            if (x1.mean() - x0.mean()) / np.sqrt(x1.var() / len(x1) + x0.var() / len(x0)) > 3.09:
                return _ended("rollback", metric, seen, upto)
    return _ended("promote", None, seen, len(seen.minute) - 1)


JUDGES = {
    "a z-test that peeks": peeking_z_test,
    "labels used as they arrive": labels_as_they_arrive,
    "champion traffic that is not concurrent": champion_not_concurrent,
}


def _ended(verdict: str, metric: str | None, seen: Served, at: int) -> list[dict[str, Any]]:
    exposed = int(seen.exposed[at]) if len(seen.exposed) else 0
    return [{"verdict": verdict, "metric": metric, "exposed": exposed, "seq": at, "missing": [], "final": True}]
