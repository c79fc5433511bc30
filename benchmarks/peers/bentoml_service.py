"""A peer of the gateway: BentoML's own API decorator and the same ONNX model."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(name="peer", workers=1, logging={"access": {"enabled": False}})
class Peer:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(route="/v2/models/bench/infer")
    async def infer(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        matrix = np.array([tensor["data"] for tensor in inputs], dtype=np.float32).T
        score = self._session.run(None, {"features": matrix})[0]
        return {"outputs": [{"name": "score", "datatype": "FP32", "shape": [len(score)], "data": score.tolist()}]}
