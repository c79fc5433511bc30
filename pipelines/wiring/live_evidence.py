"""A rollout's live evidence: the rows of the inference log that belong to it, and what they fold to."""

from __future__ import annotations

import logging

import msgspec
import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.rollout_store import EvidenceRow
from pipelines.collect.case import Case
from pipelines.collect.fold import Fold
from pipelines.contracts.errors import ContractError
from pipelines.rollout.frozen_policy import frozen_policy
from pipelines.rollout.state import Rollout

_log = logging.getLogger("slipway.collector")


class LiveEvidence:
    """One running rollout's case and fold, in memory; rebuilt from the lake after a restart.

    `problem` says why its evidence stands still (empty: it does not): today's code cannot read its policy, or its
    policy cannot take some rows. Its requests are known all the same, so that repeated ones are told.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.problem = ""
        self.ended_s: float | None = None
        self.case = Case(rollout.id, rollout.model)
        self.fold: Fold | None = None
        try:
            policy = frozen_policy(rollout)
        except ContractError as error:
            self._stop(error)
            return
        self.case = Case(rollout.id, rollout.model, policy.slices, policy.kpis)
        self.fold = Fold(policy)

    def take(self, tables: dict[str, pa.Table]) -> bool:
        """Fold one batch; whether its evidence or its counts are others now.

        What comes after its end (a gateway follows a route a moment later) is counted, and is no evidence.
        """
        made = self.case.take(tables)
        if not made or self.fold is None:
            return False
        if self.ended_s is None:
            try:
                self.fold.add(**made)
            except ContractError as error:
                self._stop(error)
        return self.fold is not None

    def _stop(self, error: ContractError) -> None:
        self.problem, self.fold = str(error), None
        _log.error("evidence of %s stands still: %s", self.case.rollout_id, error)

    def row(self, batch: int) -> EvidenceRow:
        """The evidence so far, as it is stored, while it does not stand still."""
        assert self.fold is not None
        counts = self.case.counts
        return EvidenceRow.of(
            self.case.rollout_id,
            "live",
            batch,
            self.fold.evidence(),
            event_us=counts.last_event_us,
            counts=msgspec.to_builtins(counts),
        )


def read_log(lake: DeltaLake, rollout: Rollout, *, before_batch: int | None = None) -> dict[str, pa.Table]:
    """What a rollout's evidence is folded from, one table a kind, in the collector's order.

    Its assignments and answers, and the model's labels and KPI values from its first assignment on.
    """
    until = "" if before_batch is None else f" AND batch < {before_batch}"
    mine = f"model = '{rollout.model}' AND rollout_id = '{rollout.id}'{until}"
    found: dict[str, pa.Table] = {}
    if not lake.exists("inference/assignment"):
        return found
    assignments = lake.read("inference/assignment", where=mine).sort_by("seq")
    if not assignments.num_rows:
        return found
    found["assignment"] = assignments
    later = f"model = '{rollout.model}' AND seq > {assignments['seq'][0].as_py()}{until}"
    for kind, where in (("response", mine), ("label", later), ("kpi", later)):
        if lake.exists(f"inference/{kind}"):
            found[kind] = lake.read(f"inference/{kind}", where=where).sort_by("seq")
    return {kind: table for kind, table in found.items() if table.num_rows}
