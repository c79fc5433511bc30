"""A peer of the gateway: an MLServer runtime over the same ONNX model."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxRuntime(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        columns = [NumpyCodec.decode_input(one).reshape(-1) for one in payload.inputs]
        score = self._session.run(None, {"features": np.array(columns, dtype=np.float32).T})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", score)])
