"""A peer of the gateway: FastAPI with typed bodies and the same ONNX model."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = 1
_session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], _options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


class InferResponse(BaseModel):
    outputs: list[Tensor]


@app.get("/v2/health/ready")
async def ready() -> dict[str, Any]:
    return {}


@app.post("/v2/models/bench/infer")
async def infer(request: InferRequest) -> InferResponse:
    matrix = np.array([tensor.data for tensor in request.inputs], dtype=np.float32).T
    score = _session.run(None, {"features": matrix})[0]
    return InferResponse(outputs=[Tensor(name="score", datatype="FP32", shape=[len(score)], data=score.tolist())])
