"""The policy that a rollout was frozen with, as the code of today reads it."""

from __future__ import annotations

import json
from functools import cache

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Rollout


def frozen_policy(rollout: Rollout) -> Policy:
    """The rollout's policy. Raises ContractError, naming rollout and plan, for one that only other code can read."""
    try:
        return _parsed(rollout.policy_digest, json.dumps(rollout.plan.policy))
    except ContractError as error:
        raise ContractError(
            f"plan {rollout.policy_digest[:12]} of rollout {rollout.id}",
            got=f"one that this version cannot read ({error})",
            expected="one of this version",
            hint=f"`slipway rollout reject {rollout.id}` and start it again, or end it with the version that began it.",
        ) from error


@cache
def _parsed(_digest: str, document: str) -> Policy:
    return Policy.parse(json.loads(document))
