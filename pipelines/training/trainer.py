"""The port that trainers implement. Two real ones lie in `pipelines/adapters`: LightGBM and scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.training.metrics import Vector

Matrix = npt.NDArray[np.float32]
Params = dict[str, Any]


class Rows(NamedTuple):
    """A model's matrix [rows, features] and its labels [rows]."""

    x: Matrix
    y: Vector

    def take(self, index: npt.NDArray[Any]) -> Rows:
        """These rows only (mask or positions)."""
        return Rows(self.x[index], self.y[index])


class Suggester(Protocol):
    """The part of an Optuna trial that a trainer uses."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


class Fitted(Protocol):
    """A fitted model. Scores are probabilities of class 1, or values; float64 [rows]."""

    @property
    def params(self) -> Params:
        """The parameters that fit it again on other rows, the number of rounds included."""

    def predict(self, x: Matrix) -> Vector:
        """Raw scores by the library that fitted it."""

    def importance(self) -> Vector:
        """How much each feature contributes: not negative, sums to 1 (or all zero)."""

    def to_onnx(self) -> bytes:
        """An ONNX model: input `features` float32 [rows, features], output `score` float32 [rows]."""


class Trainer(Protocol):
    """One way to fit a model."""

    name: str
    tasks: frozenset[str]

    def suggest(self, trial: Suggester) -> Params:
        """A point of the search space."""

    def fit(self, task: str, rows: Rows, params: Params, *, seed: int, watch: Rows | None) -> Fitted:
        """Fit on `rows`. `watch` decides when to stop, where the trainer has rounds; without it `params` says."""
