"""The plan of a model's rollout at its own traffic, as it would be frozen if a rollout started now."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.contracts.errors import ContractError, NotFoundError
from pipelines.rollout.bars import levels
from pipelines.rollout.known_traffic import Known
from pipelines.rollout.planner import Need, metric_needs
from pipelines.rollout.policy import Policy
from pipelines.rollout.reach import shortfalls
from pipelines.rollout.stage_lengths import settle
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.wiring.rollout_gate import policy_mapping
from pipelines.wiring.rollout_traffic import known


class ModelPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's policy needs: `stages` with the lengths that `auto` comes to, `needs` by question, `unknown`
    metrics of which a base rate is missing, `short` what cannot be reached and what would do.
    """

    model: str
    policy: Policy
    traffic: Known
    settled: dict[str, int]
    needs: list[Need]
    unknown: dict[str, str]
    short: list[str]

    @property
    def feasible(self) -> bool:
        """Whether every required proof that can be planned fits into the stages."""
        return not self.short

    def to_mapping(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "policy_digest": self.policy.digest,
            "traffic": self.traffic.source,
            "rates": msgspec.to_builtins(self.traffic.rates),
            "rates_from": self.traffic.by_metric,
            "stages": [
                {"name": stage.name, "requests": stage.requests, "auto": stage.name in self.settled}
                for stage in self.policy.stages
            ],
            "levels": levels(self.policy),
            "feasible": self.feasible,
            "needs": msgspec.to_builtins(self.needs),
            "unknown": self.unknown,
            "short": self.short,
        }


def plan_model(settings: Settings, model: str) -> ModelPlan:
    """The plan at what is known of the model's traffic. Raises NotFoundError where nothing is, and as `settle`."""
    spec = load_model(settings.include_dir, model)
    traffic = known(settings, spec)
    if traffic is None:
        raise NotFoundError(
            f"traffic of {model}",
            got="no champion's log, no evaluated release, no `traffic` in the spec",
            expected="one of them",
            hint="Declare `traffic: {requests_per_day: ...}` in the model's spec.",
        )
    mapping, settled = settle(policy_mapping(spec), traffic.rates)
    policy = Policy.parse(mapping)
    needs: list[Need] = []
    unknown: dict[str, str] = {}
    for metric in policy.metrics:
        try:
            needs += metric_needs(policy, traffic.rates, metric)
        except ContractError as error:
            unknown[metric.name] = str(error.expected)
    return ModelPlan(
        model=model,
        policy=policy,
        traffic=traffic,
        settled=settled,
        needs=needs,
        unknown=unknown,
        short=[short.sentence for short in shortfalls(policy, traffic.rates)],
    )
