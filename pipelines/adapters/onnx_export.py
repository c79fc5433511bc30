"""Fitted models as ONNX with one contract: input `features` float32 [rows, features], output `score` float32 [rows].

The converters also give the predicted class; its declared shape is wrong and would warn on every batch, so it goes.
"""

from __future__ import annotations

from typing import Any

OPSET = 15
INPUT = "features"
OUTPUT = "score"


def from_lightgbm(booster: Any, task: str) -> bytes:
    """A LightGBM booster as ONNX bytes."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    width = booster.num_feature()
    model = convert_lightgbm(
        booster, initial_types=[(INPUT, FloatTensorType([None, width]))], zipmap=False, target_opset=OPSET
    )
    return _one_score(model, task)


def from_sklearn(pipeline: Any, task: str, width: int) -> bytes:
    """A scikit-learn pipeline as ONNX bytes."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    options = {"zipmap": False} if task == "binary" else None
    model = to_onnx(
        pipeline, initial_types=[(INPUT, FloatTensorType([None, width]))], options=options, target_opset=OPSET
    )
    return _one_score(model, task)


def _one_score(model: Any, task: str) -> bytes:
    """Keep one output: the probability of class 1, or the value, as [rows]."""
    import numpy as np
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = model.graph
    graph.name = "slipway"  # the converters draw it at random; equal models are equal bytes
    source = graph.output[-1].name  # binary: (label, probabilities); regression: (variable,)
    if task == "binary":
        graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.int64), "slipway_class"))
        node = helper.make_node("Gather", [source, "slipway_class"], [OUTPUT], axis=1)
    else:
        graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), "slipway_flat"))
        node = helper.make_node("Reshape", [source, "slipway_flat"], [OUTPUT])
    graph.node.append(node)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [None]))
    checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
