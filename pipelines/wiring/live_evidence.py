"""A rollout's live evidence: the rows of the inference log that belong to it, and what they fold to."""

from __future__ import annotations

import msgspec
import pyarrow as pa

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.rollout_store import EvidenceRow
from pipelines.collect.case import Case
from pipelines.collect.fold import Fold
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Rollout


class LiveEvidence:
    """One running rollout's case and fold, in memory; rebuilt from the lake after a restart.

    Raises ContractError for a policy that today's code cannot read.
    """

    def __init__(self, rollout: Rollout) -> None:
        policy = Policy.parse(rollout.plan.policy)
        self.case = Case(rollout.id, rollout.model, policy.slices, policy.kpis)
        self.fold = Fold(policy)
        self.ended_s: float | None = None

    def take(self, tables: dict[str, pa.Table]) -> bool:
        """Fold one batch; whether any of its rows belonged to the rollout.

        What comes after its end (a gateway follows a route a moment later) is counted, and is no evidence.
        """
        made = self.case.take(tables)
        if made and self.ended_s is None:
            self.fold.add(**made)
        return bool(made)

    def row(self, batch: int) -> EvidenceRow:
        """The evidence so far, as it is stored."""
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
