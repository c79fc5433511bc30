"""Jobs that make a release: training set, fit, evaluation, export, offline gates, registration.

Each takes and returns references, may be repeated, and finds its own finished work again.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from pipelines.settings import Settings
from pipelines.training.gates import GateVerdict
from pipelines.wiring.training_candidates import candidates
from pipelines.wiring.training_evaluation import evaluate
from pipelines.wiring.training_export import export
from pipelines.wiring.training_fit import fit
from pipelines.wiring.training_join import make_training_set
from pipelines.wiring.training_registration import offline_gates, register

__all__ = [
    "Trained",
    "candidates",
    "evaluate",
    "export",
    "fit",
    "make_training_set",
    "offline_gates",
    "register",
    "train",
]


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What `train` made. `gates` are the offline gates' verdicts; `refused` says that one of them failed."""

    model: str
    release: str
    semver: str
    mlflow_run: str
    training_set: str
    metrics: dict[str, Any]
    gates: list[GateVerdict]
    refused: bool
    seconds: dict[str, float]


def train(settings: Settings, model: str, as_of_us: int) -> Trained:
    """All jobs below, in order: from what was known at `as_of_us` to a registered (or refused) release."""
    seconds: dict[str, float] = {}

    def timed(name: str, job: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = job(settings, *arguments)
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    made = timed("make_training_set", make_training_set, model, as_of_us)
    candidate = timed("fit", fit, model, made, as_of_us)
    timed("evaluate", evaluate, candidate)
    release = timed("export", export, candidate)
    verdicts = timed("offline_gates", offline_gates, release)
    row = timed("register", register, release)
    return Trained(
        model=model,
        release=release,
        semver=row.semver,
        mlflow_run=row.mlflow_run,
        training_set=made,
        metrics=row.metrics,
        gates=verdicts,
        refused=row.status == "refused",
        seconds=seconds,
    )
