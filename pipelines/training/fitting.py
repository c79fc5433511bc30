"""From a training set's rows to a fitted, calibrated model: tune, rehearse, calibrate, fit on everything.

The rehearsal is fitted on the fit part and stopped on validation; validation calibrates it, test measures it. The model
that is released is fitted again on all labelled rows with the parameters and rounds the rehearsal found: the newest
weeks are worth more than a model that never saw them. What test measured is therefore the recipe; the backtest and
the shadow stage measure the release itself.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from pipelines.training.calibration import calibrate
from pipelines.training.metrics import Vector
from pipelines.training.split import Split
from pipelines.training.trainer import Fitted, Params, Rows, Trainer
from pipelines.training.tuning import Study, tune


class Made(NamedTuple):
    """`final` is to be released; `test_raw` are the rehearsal's raw scores of the test part."""

    final: Fitted
    study: Study
    calibration: dict[str, Any]
    test_raw: Vector
    seconds: dict[str, float]


def make(
    trainer: Trainer, task: str, rows: Rows, parts: Split, *, fixed: Params, trials: int, seed: int, calibration: str
) -> Made:
    """Fit by the steps above. `rows` are the labelled rows; `parts` masks over them."""
    seconds: dict[str, float] = {}
    fit, validation, test = (rows.take(mask) for mask in parts)
    with _timed(seconds, "tune"):
        study = tune(trainer, task, fit, validation, fixed=fixed, trials=trials, seed=seed)
    with _timed(seconds, "rehearse"):
        params = {name: value for name, value in study.best.params.items() if name not in _ROUNDS or name in fixed}
        rehearsal = trainer.fit(task, fit, params, seed=seed, watch=validation)
        found = calibrate(calibration, task, validation.y, rehearsal.predict(validation.x))
        test_raw = rehearsal.predict(test.x)
    with _timed(seconds, "fit"):
        final = trainer.fit(task, rows, rehearsal.params, seed=seed, watch=None)
    return Made(final, study, found, np.asarray(test_raw), seconds)


_ROUNDS = frozenset({"num_iterations"})


class _timed:  # noqa: N801 - a context manager used as a function
    def __init__(self, into: dict[str, float], name: str) -> None:
        self.into, self.name = into, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.into[self.name] = round(time.perf_counter() - self.start, 3)
