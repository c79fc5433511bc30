"""A model's traffic as its own log, its releases' evaluation and its spec tell it: what policies are planned with."""

from __future__ import annotations

import json

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.inference_log import answers
from pipelines.contracts.errors import DataError
from pipelines.rollout.base_rates import measured
from pipelines.rollout.known_traffic import Known, combined
from pipelines.rollout.policy import Policy
from pipelines.rollout.rates import Rates
from pipelines.settings import Settings
from pipelines.spec.model import ModelSpec
from pipelines.stats.evidence import Evidence
from pipelines.wiring.rollout_gate import rollout_store, unplanned

LOG, EVALUATION, DECLARED = "the inference log", "the release's evaluation", "the spec"


def known(settings: Settings, spec: ModelSpec) -> Known | None:
    """What is known of the model's traffic: its champion's log, then the newest release's evaluation, then the spec."""
    policy = unplanned(spec)
    told = [
        (LOG, logged(settings, spec.name, policy)),
        (EVALUATION, evaluation(settings, spec.name)),
        (DECLARED, declared(spec)),
    ]
    return combined(policy, [(source, rates) for source, rates in told if rates is not None])


def known_to_check(settings: Settings, spec: ModelSpec) -> Known | None:
    """What `slipway check` plans with: the declared traffic, else the logged one. The same on every machine for a spec
    that declares its traffic.
    """
    policy = unplanned(spec)
    if (rates := declared(spec)) is not None:
        return combined(policy, [(DECLARED, rates)])
    measured_rates = logged(settings, spec.name, policy)
    return None if measured_rates is None else combined(policy, [(LOG, measured_rates)])


def declared(spec: ModelSpec) -> Rates | None:
    """What the spec says of the traffic; None when it says nothing."""
    told = spec.traffic
    if told is None:
        return None
    return Rates.parse(
        {
            "requests_per_hour": told.requests_per_day / 24.0,
            "labelled": told.labelled,
            "units": told.units,
            "slices": told.slices,
            "metrics": {name: base.model_dump(exclude_none=True) for name, base in told.base_rates.items()},
        }
    )


def logged(settings: Settings, model: str, policy: Policy) -> Rates | None:
    """The rates of the champion's newest answers; None where too little is logged."""
    if not open_lake(settings).exists("inference/response"):
        return None
    champion = control_db(settings).champion(model)
    if champion is None:
        return None
    try:
        found = answers(open_lake(settings), model, champion, LAST_US, policy.kpis)
        return measured(policy, found, _compared(settings, model))
    except DataError:
        return None


LAST_US = 4_102_444_800_000_000
"""2100: everything that is logged."""


def _compared(settings: Settings, model: str) -> Evidence | None:
    """The evidence of the model's newest rollout that compared pairs: how far two releases differ."""
    store = rollout_store(settings)
    for rollout in reversed(store.rollouts(model, unreadable={})):
        rows = store.view(rollout.id).evidence
        if rows:
            parts = [Evidence.from_json(row.document) for row in rows]
            return sum(parts[1:], parts[0])
    return None


def evaluation(settings: Settings, model: str) -> Rates | None:
    """The rates that the newest registered release's evaluation has written down; None without one."""
    if not settings.releases.is_dir():
        return None
    for row in reversed(control_db(settings).releases(model)):
        path = settings.releases / row.digest / "metrics.json"
        if path.is_file() and (told := json.loads(path.read_text()).get("planning")):
            return Rates.parse(told)
    return None
