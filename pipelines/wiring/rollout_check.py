"""Whether a model's rollout can be planned, and reached at its traffic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.contracts.errors import ContractError, SlipwayError
from pipelines.rollout.policy import Policy
from pipelines.rollout.policy_values import PolicyError
from pipelines.rollout.reach import shortfalls, unprovable
from pipelines.rollout.stage_lengths import automatic, settle
from pipelines.settings import Settings
from pipelines.spec.model import ModelSpec
from pipelines.spec.problems import Location, Problem
from pipelines.wiring.rollout_gate import plan_of, policy_mapping, unplanned
from pipelines.wiring.rollout_traffic import known_to_check


def problems(settings: Settings, spec: ModelSpec, *, logged: bool = True) -> Iterator[Problem]:
    """What is wrong with the policy, else what of it cannot be reached at the declared or (with `logged`) the logged
    traffic.
    """
    mapping = policy_mapping(spec)
    try:
        unplanned(spec)
        if not automatic(mapping):
            plan_of(spec)
    except (SlipwayError, ValueError) as error:
        yield Problem(_place_of(spec, error), f"rollout.policy: {error}")
        return
    known = known_to_check(settings, spec) if logged or spec.traffic is not None else None
    short = unprovable(unplanned(spec))
    if known is not None and not short:
        try:
            short = shortfalls(Policy.parse(settle(mapping, known.rates)[0]), known.rates)
        except ContractError as error:
            yield Problem(("rollout", "stages"), f"rollout.stages: {error}")
            return
    places: dict[Any, Location] = {
        ("metric", row["name"]): ("rollout", "policy", "metrics", index)
        for index, row in enumerate(spec.rollout.policy["metrics"])
    }
    places |= {("stage", stage.name): ("rollout", "stages", index) for index, stage in enumerate(spec.rollout.stages)}
    source = f" (traffic of {known.source})" if known is not None and spec.traffic is None else ""
    for one in short:
        at = places["metric", one.metric] if one.metric is not None else places["stage", one.stage]
        yield Problem(at, one.sentence + source)


def _place_of(spec: ModelSpec, error: Exception) -> Location:
    """Where in a model's spec stands what is wrong with its policy: its stages lie beside it, and durations of the spec
    are seconds in the policy.
    """
    steps = error.location if isinstance(error, PolicyError) else ()
    if steps[:1] == ("stages",):
        return ("rollout", *(step.removesuffix("_s") if isinstance(step, str) else step for step in steps))
    first = tuple(step for step in steps[:1] if step in spec.rollout.policy)
    return ("rollout", "policy", *(first or tuple(str(step).removesuffix("_s") for step in steps[:1])), *steps[1:])
