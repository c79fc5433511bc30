"""The LightGBM trainer: gradient-boosted trees, missing values allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.training.metrics import Vector
from pipelines.training.trainer import Matrix, Params, Rows, Suggester

if TYPE_CHECKING:
    import lightgbm

_OBJECTIVE = {"binary": ("binary", "binary_logloss"), "regression": ("regression", "l2")}
_ROUNDS = 200
_PATIENCE = 15
_LEAST_IN_LEAF = 10
_FIXED: Params = {
    "learning_rate": 0.12,
    "max_bin": 63,
    "bagging_freq": 1,
    "deterministic": True,
    "force_col_wise": True,
    "feature_pre_filter": False,
    "verbosity": -1,
    # Two threads gain nothing on 320,000 rows, and two models trained at once wait for each other at every split. A
    # spec with more rows and cores says `params: {num_threads: N}`.
    "num_threads": 1,
}


class LightGbmFitted:
    """A fitted booster; `params` holds the number of rounds it stopped at."""

    def __init__(self, booster: lightgbm.Booster, task: str, params: Params) -> None:
        self.booster = booster
        self.task = task
        self.params = params

    def predict(self, x: Matrix) -> Vector:
        return np.asarray(self.booster.predict(x), dtype=np.float64)

    def importance(self) -> Vector:
        gain = np.asarray(self.booster.feature_importance(importance_type="gain"), dtype=np.float64)
        return gain / gain.sum() if gain.sum() else gain

    def to_onnx(self) -> bytes:
        from pipelines.adapters.onnx_export import from_lightgbm

        return from_lightgbm(self.booster, self.task)


class LightGbmTrainer:
    """Trees; stops when `watch` has not become better for 15 rounds, and notes how many rounds that were.

    Beside LightGBM's own parameters it takes `min_leaf_share`: the least share of the rows in a leaf, so that what was
    found on a sample fits the whole.
    """

    name = "lightgbm"
    tasks = frozenset({"binary", "regression"})

    def suggest(self, trial: Suggester) -> Params:
        return {
            "num_leaves": trial.suggest_int("num_leaves", 7, 31, log=True),
            "min_leaf_share": trial.suggest_float("min_leaf_share", 5e-4, 2e-2, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.5, 1.0),
            "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
            "lambda_l2": trial.suggest_float("lambda_l2", 1e-2, 30.0, log=True),
        }

    def fit(self, task: str, rows: Rows, params: Params, *, seed: int, watch: Rows | None) -> LightGbmFitted:
        import lightgbm as lgb

        objective, metric = _OBJECTIVE[task]
        given: dict[str, Any] = {**_FIXED, **params}
        rounds = int(given.pop("num_iterations", _ROUNDS))
        kept = dict(given)
        if share := given.pop("min_leaf_share", None):
            given["min_data_in_leaf"] = max(_LEAST_IN_LEAF, round(float(share) * rows.y.size))
        settings = {**given, "objective": objective, "metric": metric, "seed": seed}
        train = lgb.Dataset(rows.x, rows.y, params=settings, free_raw_data=False)
        if watch is None:
            booster = lgb.train(settings, train, num_boost_round=rounds)
            return LightGbmFitted(booster, task, {**kept, "num_iterations": rounds})
        stop = lgb.early_stopping(_PATIENCE, verbose=False)
        valid = lgb.Dataset(watch.x, watch.y, reference=train, params=settings, free_raw_data=False)
        booster = lgb.train(settings, train, num_boost_round=rounds, valid_sets=[valid], callbacks=[stop])
        best = booster.best_iteration or booster.current_iteration()
        return LightGbmFitted(booster, task, {**kept, "num_iterations": best})
