"""The floor the gateway is measured against: a pure ASGI app that parses the same body and runs the same ONNX model.

No routing, no log, no checks, no metrics: JSON in, scores out, or binary tensor data in and out.
"""

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


def _json(body: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    inputs = _decode(body)["inputs"]
    matrix = np.array([tensor["data"] for tensor in inputs], dtype=np.float32).T
    score = _session.run(None, {"features": matrix})[0]
    output = {"name": "score", "datatype": "FP32", "shape": [len(score)], "data": score.tolist()}
    return _encode({"id": "x", "outputs": [output]}), []


def _binary(body: bytes, length: int) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    inputs = _decode(memoryview(body)[:length])["inputs"]
    data = np.frombuffer(body, dtype="<f4", offset=length).reshape(len(inputs), -1)
    score = _session.run(None, {"features": np.ascontiguousarray(data.T)})[0]
    size = {"binary_data_size": 4 * len(score)}
    head = _encode({"outputs": [{"name": "score", "datatype": "FP32", "shape": [len(score)], "parameters": size}]})
    return head + score.tobytes(), [(b"inference-header-content-length", str(len(head)).encode())]


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    message = await receive()
    more: list[tuple[bytes, bytes]] = []
    if scope["method"] == "GET":
        body = b"{}"
    else:
        length = dict(scope["headers"]).get(b"inference-header-content-length")
        received = message["body"]
        while message.get("more_body"):
            message = await receive()
            received += message["body"]
        body, more = _json(received) if length is None else _binary(received, int(length))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
