"""Stages of `requests: auto`: as long as the required proofs need at the model's traffic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from pipelines.contracts.errors import ContractError
from pipelines.rollout.bars import proof_stages
from pipelines.rollout.policy import Policy
from pipelines.rollout.policy_values import AUTO
from pipelines.rollout.rates import Rates
from pipelines.rollout.walk import Walk

ROOM = 1.5
"""How much longer a stage is than the plan, which is a median: half of all good challengers need more."""
LEAST = 1_000
"""Requests below which a stage would pass before gross harm shows."""
MOST = 10_000_000


def automatic(mapping: Mapping[str, Any]) -> list[str]:
    """Names of the stages whose length is to be planned."""
    return [str(stage.get("name")) for stage in mapping.get("stages", ()) if stage.get("requests") == AUTO]


def settle(mapping: Mapping[str, Any], rates: Rates) -> tuple[dict[str, Any], dict[str, int]]:
    """The `slipway-gate/1` mapping with numbers for `auto`, and those numbers by stage.

    A stage of pairs is as long as the proofs on pairs need; stages that draw the arm share what the proofs on served
    answers need; a bake lasts until the labels of the last requests before it are mature. A backtest takes what the log
    has. Raises ContractError for a proof that no length gives, or for a base rate that is not known.
    """
    names = automatic(mapping)
    listed = [
        {key: value for key, value in stage.items() if key != "requests" or value != AUTO}
        for stage in mapping.get("stages", ())
    ]
    lengths = _lengths(Policy.parse({**mapping, "stages": listed}), rates, set(names))
    for stage in listed:
        if stage["name"] in lengths:
            stage["requests"] = lengths[stage["name"]]
    return {**mapping, "stages": listed}, lengths


def _lengths(policy: Policy, rates: Rates, names: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    pairs = [stage.name for stage in policy.stages if stage.name in names and stage.kind == "shadow"]
    drawn = [stage.name for stage in policy.stages if stage.name in names and stage.randomised]
    for group, paired in ((pairs, True), (drawn, False)):
        if group:
            # Pairs are had in shadow at no exposure; where no stage of pairs is free, the canaries have to give them.
            asked = [
                metric.name
                for metric in policy.metrics
                if metric.name in policy.require and (set(group) & set(proof_stages(policy, metric)))
                if metric.paired == paired or not pairs
            ]
            length = _shared(_with(policy, found, names), rates, group, asked)
            found |= dict.fromkeys(group, length)
    for stage in policy.stages:
        if stage.kind == "bake" and stage.name in names:
            found[stage.name] = _rounded(max(policy.label_maturity_s / 3600.0 * rates.requests_per_hour, LEAST))
    return {stage.name: found[stage.name] for stage in policy.stages if stage.name in found}


def _with(policy: Policy, lengths: Mapping[str, int], names: set[str]) -> Policy:
    """The policy with some lengths; stages of `names` that have none yet are as short as a stage may be."""
    stages = tuple(
        msgspec.structs.replace(stage, requests=lengths.get(stage.name, LEAST)) if stage.name in names else stage
        for stage in policy.stages
    )
    return msgspec.structs.replace(policy, stages=stages)


def _shared(policy: Policy, rates: Rates, group: list[str], metrics: list[str]) -> int:
    """The one length of the stages of `group` at which the proofs of `metrics` fit."""
    longest = LEAST
    for name in metrics:
        low, high = LEAST, LEAST
        while not _fits(policy, rates, group, name, high):
            low, high = high, high * 2
            if high > MOST:
                raise ContractError(
                    f"proof of {name}", got=f"requests: auto of {', '.join(group)}",
                    expected=f"one that needs fewer than {MOST:,} requests",
                    hint="Widen its margin, or leave it out of `require`.",
                )  # fmt: skip
        while high - low > max(low // 100, 1):
            middle = (low + high) // 2
            low, high = (low, middle) if _fits(policy, rates, group, name, middle) else (middle, high)
        longest = max(longest, high)
    return _rounded(longest * ROOM) if longest > LEAST else LEAST


def _fits(policy: Policy, rates: Rates, group: list[str], metric: str, length: int) -> bool:
    longer = _with(policy, dict.fromkeys(group, length), set(group))
    return Walk.of(longer, rates, longer.metric(metric), "proof").fits()


def _rounded(requests: float) -> int:
    """Up to two digits."""
    unit = 10 ** max(math.floor(math.log10(requests)) - 1, 0)
    return int(math.ceil(requests / unit) * unit)
