"""A small seeded Optuna study: each trial is fitted on a sample of the fit part and measured on the validation part."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.contracts.errors import DataError
from pipelines.training.metrics import HIGHER_IS_BETTER, OBJECTIVE, measure
from pipelines.training.trainer import Params, Rows, Trainer

SAMPLE_ROWS = 25_000
VALIDATION_ROWS = 10_000


class Trial(NamedTuple):
    """One point of the study and what it reached (`value` of the task's objective on validation)."""

    number: int
    params: Params
    value: float


class Study(NamedTuple):
    """All trials in order; `best` is the one with the best value, the earliest of equals."""

    objective: str
    trials: list[Trial]
    best: Trial


def tune(trainer: Trainer, task: str, fit: Rows, validation: Rows, *, fixed: Params, trials: int, seed: int) -> Study:
    """Run the study. `fixed` parameters are not searched. With `trials` 0 the fixed ones alone are tried.

    Both parts are sampled uniformly (so, over their whole time) to `SAMPLE_ROWS` and `VALIDATION_ROWS`.
    Raises DataError when no trial gave a finite value.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rng = np.random.default_rng(seed)
    sample, watch = _sample(fit, SAMPLE_ROWS, rng), _sample(validation, VALIDATION_ROWS, rng)
    objective = OBJECTIVE[task]
    direction: Literal["minimize", "maximize"] = "maximize" if objective in HIGHER_IS_BETTER else "minimize"
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5))
    found: list[Trial] = []
    for number in range(max(trials, 1)):
        trial = study.ask()
        params: dict[str, Any] = {**(trainer.suggest(trial) if trials else {}), **fixed}
        fitted = trainer.fit(task, sample, params, seed=seed, watch=watch)
        value = measure(task, watch.y, fitted.predict(watch.x))[objective]
        study.tell(trial, value)
        found.append(Trial(number, params, value))
    finite = [trial for trial in found if np.isfinite(trial.value)]
    if not finite:
        raise DataError("tuning", got=f"no finite {objective} in {len(found)} trials", expected="a finite one")
    best = (max if direction == "maximize" else min)(finite, key=lambda trial: trial.value)
    return Study(objective, found, best)


def _sample(rows: Rows, most: int, rng: np.random.Generator) -> Rows:
    if rows.y.size <= most:
        return rows
    return rows.take(np.sort(rng.choice(rows.y.size, most, replace=False)))
