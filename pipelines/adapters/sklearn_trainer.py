"""The scikit-learn trainers: logistic and ridge regression on imputed, scaled features."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.training.metrics import Vector
from pipelines.training.trainer import Matrix, Params, Rows, Suggester


class LinearFitted:
    """A fitted pipeline (median for missing values, standard scale, linear model)."""

    def __init__(self, pipeline: Any, task: str, params: Params) -> None:
        self.pipeline = pipeline
        self.task = task
        self.params = params

    def predict(self, x: Matrix) -> Vector:
        if self.task == "binary":
            return np.asarray(self.pipeline.predict_proba(x)[:, 1], dtype=np.float64)
        return np.asarray(self.pipeline.predict(x), dtype=np.float64)

    def importance(self) -> Vector:
        weight = np.abs(np.ravel(self.pipeline[-1].coef_)).astype(np.float64)
        return weight / weight.sum() if weight.sum() else weight

    def to_onnx(self) -> bytes:
        from pipelines.adapters.onnx_export import from_sklearn

        return from_sklearn(self.pipeline, self.task, self.pipeline.n_features_in_)


class _LinearTrainer:
    """What both share: the penalty's strength is the one parameter searched; there are no rounds to stop."""

    def suggest(self, trial: Suggester) -> Params:
        return {"penalty": trial.suggest_float("penalty", 1e-1, 1e3, log=True)}

    def _fit(self, estimator: Any, task: str, rows: Rows, params: Params) -> LinearFitted:
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        # It ships no types, and mypy finds it in one environment only.
        from threadpoolctl import threadpool_limits  # type: ignore[import-not-found, import-untyped, unused-ignore]

        imputer = SimpleImputer(strategy="median", keep_empty_features=True)
        pipeline = make_pipeline(imputer, StandardScaler(), estimator)
        with threadpool_limits(1):  # a few dozen columns: more threads only wait for each other
            pipeline.fit(rows.x.astype(np.float64), rows.y)  # single precision makes the Hessian singular
        return LinearFitted(pipeline, task, params)


class LogisticTrainer(_LinearTrainer):
    """Logistic regression; `penalty` is the inverse of scikit-learn's C."""

    name = "logistic"
    tasks = frozenset({"binary"})

    # A closed form has no rounds to stop, so nothing to watch.
    def fit(self, task: str, rows: Rows, params: Params, *, seed: int, watch: Rows | None) -> LinearFitted:  # noqa: ARG002
        from sklearn.linear_model import LogisticRegression

        penalty = float(params.get("penalty", 1.0))
        estimator = LogisticRegression(C=1 / penalty, solver="newton-cholesky", max_iter=100, random_state=seed)
        return self._fit(estimator, task, rows, {**params, "penalty": penalty})


class RidgeTrainer(_LinearTrainer):
    """Ridge regression; `penalty` is scikit-learn's alpha."""

    name = "ridge"
    tasks = frozenset({"regression"})

    # A closed form has no rounds to stop, so nothing to watch.
    def fit(self, task: str, rows: Rows, params: Params, *, seed: int, watch: Rows | None) -> LinearFitted:  # noqa: ARG002
        from sklearn.linear_model import Ridge

        penalty = float(params.get("penalty", 1.0))
        return self._fit(Ridge(alpha=penalty, random_state=seed), task, rows, {**params, "penalty": penalty})
