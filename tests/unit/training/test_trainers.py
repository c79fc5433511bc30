"""One suite for every trainer: what is exported answers like what was fitted."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.adapters.onnx_runtime import OnnxModel
from pipelines.adapters.trainers import trainer_named
from pipelines.contracts.errors import ContractError, SpecError
from pipelines.training.fitting import make
from pipelines.training.metrics import measure
from pipelines.training.split import Split
from pipelines.training.trainer import Rows

CASES = [("lightgbm", "binary"), ("lightgbm", "regression"), ("logistic", "binary"), ("ridge", "regression")]
ROWS = 1_500


def rows_of(task: str) -> Rows:
    """Three informative features, one useless, some values missing."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(ROWS, 4)).astype(np.float32)
    signal = 1.5 * x[:, 0] - x[:, 1] + 0.5 * x[:, 2]
    noise = rng.random(ROWS)
    y = (noise < 1 / (1 + np.exp(-signal))).astype(float) if task == "binary" else signal * 10 + 50 + noise
    x[rng.random(x.shape) < 0.05] = np.nan
    return Rows(x, y)


PARTS = Split(np.arange(ROWS) < 900, (np.arange(ROWS) >= 900) & (np.arange(ROWS) < 1200), np.arange(ROWS) >= 1200)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_onnx_answers_as_the_library_does(name: str, task: str) -> None:
    rows = rows_of(task)
    fitted = trainer_named(name, task).fit(task, rows, {}, seed=1, watch=None)
    served = OnnxModel(fitted.to_onnx()).predict(rows.x)
    assert served.shape == (ROWS,)
    np.testing.assert_allclose(served, fitted.predict(rows.x), rtol=1e-5, atol=1e-5 if task == "binary" else 1e-3)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_same_seed_makes_the_same_model(name: str, task: str) -> None:
    trainer, rows = trainer_named(name, task), rows_of(task)
    one, other = (
        make(trainer, task, rows, PARTS, fixed={}, trials=2, seed=5, calibration="none").final for _ in range(2)
    )
    assert one.to_onnx() == other.to_onnx()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_fit_is_better_than_the_mean_and_tells_what_matters(name: str, task: str) -> None:
    rows = rows_of(task)
    made = make(trainer_named(name, task), task, rows, PARTS, fixed={}, trials=2, seed=5, calibration="none")
    label = rows.y[PARTS.test]
    found = measure(task, label, made.test_raw)
    assert found["auc"] > 0.75 if task == "binary" else found["r2"] > 0.6
    importance = made.final.importance()
    assert importance.sum() == pytest.approx(1.0)
    assert importance.argmax() == 0
    assert importance.argmin() == 3


def test_trees_stop_when_validation_says_so_and_fit_again_with_those_rounds() -> None:
    rows = rows_of("binary")
    trainer = trainer_named("lightgbm", "binary")
    stopped = trainer.fit("binary", rows.take(PARTS.fit), {}, seed=1, watch=rows.take(PARTS.validation))
    again = trainer.fit("binary", rows, stopped.params, seed=1, watch=None)
    assert 0 < stopped.params["num_iterations"] < 200
    assert again.params["num_iterations"] == stopped.params["num_iterations"]


def test_fixed_parameters_are_not_searched() -> None:
    made = make(
        trainer_named("lightgbm", "binary"),
        "binary",
        rows_of("binary"),
        PARTS,
        fixed={"num_leaves": 4},
        trials=3,
        seed=5,
        calibration="none",
    )
    assert {trial.params["num_leaves"] for trial in made.study.trials} == {4}


def test_an_unknown_trainer_is_told_which_there_are() -> None:
    with pytest.raises(SpecError, match=r"got xgboost; expected \['lightgbm', 'ridge'\]"):
        trainer_named("xgboost", "regression")


def test_a_model_of_another_contract_is_refused() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "other", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    with pytest.raises(ContractError, match="one input `features`"):
        OnnxModel(model.SerializeToString())
