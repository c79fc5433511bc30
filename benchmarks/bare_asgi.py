"""The floor the gateway is measured against: a pure ASGI app that parses the same JSON and runs the same ONNX model."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import onnxruntime

_options = onnxruntime.SessionOptions()
_options.intra_op_num_threads = 1
_session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], _options, providers=["CPUExecutionProvider"])
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    if scope["method"] == "GET":
        body = b"{}"
    else:
        request = _decode(message["body"])
        matrix = np.array([request["inputs"][0]["data"]], dtype=np.float32).T
        score = _session.run(None, {"features": matrix})[0]
        output = {"name": "score", "datatype": "FP64", "shape": [len(score)], "data": score.tolist()}
        body = _encode({"id": "x", "outputs": [output]})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
