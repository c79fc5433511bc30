"""What the specs of today freeze into a rollout: its own model's, its views', and those of the models it feeds."""

from __future__ import annotations

import msgspec

from pipelines.adapters.control_db import control_db
from pipelines.rollout.policy import Policy
from pipelines.rollout.stage_lengths import automatic
from pipelines.rollout.state import Feeds, Plan
from pipelines.settings import Settings
from pipelines.spec.loading import load_model, names
from pipelines.spec.model import ModelSpec
from pipelines.wiring import feature_terms
from pipelines.wiring.rollout_gate import plan_of, policy_mapping
from pipelines.wiring.rollout_traffic import known

FED_STAGE = "shadow"
"""The only stage of the policy by which a fed model is judged."""


def planned(settings: Settings, model: str, challenger: str) -> Plan:
    """What is frozen into a rollout of `challenger` (digest) that starts now: stages of `requests: auto` get their
    length, the views that it or the champion reads keep their terms, the models that are fed their policies.

    Raises SpecError, ContractError.
    """
    spec = load_model(settings.include_dir, model)
    plan = plan_of(spec, known(settings, spec) if automatic(policy_mapping(spec)) else None)
    releases = [digest for digest in (challenger, control_db(settings).champion(model)) if digest]
    return msgspec.structs.replace(
        plan,
        fed_by=fed_by(settings, spec),
        features=feature_terms.of_releases(settings, model, releases),
        feeds=feeds(settings, model),
    )


def fed_by(settings: Settings, spec: ModelSpec) -> tuple[str, ...]:
    """Every model whose scores reach this one's, however many lie between. Raises SpecError."""
    found, ahead = set[str](), [each.model for each in spec.fed_by]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += [each.model for each in load_model(settings.include_dir, name).fed_by]
    return tuple(sorted(found))


def feeds(settings: Settings, model: str) -> tuple[Feeds, ...]:
    """The models that are given the score of this one as an input that their spec names. Raises SpecError."""
    found = []
    for name in names(settings.include_dir, "models"):
        spec = load_model(settings.include_dir, name)
        for each in spec.fed_by:
            if each.model == model and each.input is not None:
                policy = policy_mapping(spec) | {"stages": [{"name": FED_STAGE, "requests": each.requests}]}
                frozen = Policy.parse(policy).to_mapping()
                found.append(Feeds(model=name, input=each.input, requests=each.requests, policy=frozen))
    return tuple(found)
