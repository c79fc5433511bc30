"""Which of the models that the trainers export the gateway may call for several requests at once."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.adapters.onnx_runtime import OnnxModel
from pipelines.adapters.trainers import trainer_named
from serving.row_by_row import MOST_ROWS, scores_row_by_row
from tests.unit.training.test_trainers import CASES, rows_of


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_gateway_finds_out_whether_a_batch_changes_the_bits_of_a_score(name: str, task: str) -> None:
    rows = rows_of(task)
    predict = OnnxModel(trainer_named(name, task).fit(task, rows, {}, seed=1, watch=None).to_onnx()).predict
    x = rows.x[:512]
    alone = np.concatenate([predict(x[row : row + 1]) for row in range(len(x))])
    same = all(
        np.concatenate([predict(x[first : first + size]) for first in range(0, len(x), size)]).tobytes()
        == alone.tobytes()
        for size in (2, 7, MOST_ROWS, 256)
    )
    assert scores_row_by_row(predict, rows.x[:1]) is same
    assert scores_row_by_row(predict, rows.x[:1], 256) is same
    if name == "lightgbm":
        assert same, "trees are added in one order"
