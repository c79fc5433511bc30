"""Rows in the collector's order -> Evidence."""

from __future__ import annotations

from typing import Any

from pipelines.rollout.policy import Policy
from pipelines.stats.evidence import Evidence


class Fold:
    """Incremental fold of one rollout's rows; see `add` for the columns."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def add(self, assignments: Any = None, responses: Any = None, labels: Any = None, kpi: Any = None) -> None:
        """Adds one batch: pyarrow tables (or None) with the columns of slipway-gate/1 without `rollout_id`.

        Optional columns: `wall_ts` on assignments and responses (response deadlines), `served` on responses, `order` (int64,
        on all four: the collector's total order over all rows; absent: `ts`), `process` on assignments (warm-up is counted
        per process start), any column named in `policy.slices` on assignments. `request_id` may be int64 or string.
        """
        raise NotImplementedError

    def evidence(self) -> Evidence:
        """The evidence of all rows added so far."""
        raise NotImplementedError
