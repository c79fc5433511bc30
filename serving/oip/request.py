"""The infer request of the Open Inference Protocol v2, as JSON.

`decode` is one of the codecs in front of the same `InferRequest`; a binary codec only has to build the same struct.
"""

from __future__ import annotations

from typing import Any

import msgspec

from serving.oip.errors import Malformed

Scalar = float | int | str | bool | None


class Tensor(msgspec.Struct):
    """One named input. `data` is flat after decoding, in row order; `shape` is [rows] or [rows, 1]."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any]
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """One output the client asks for; without any, all are sent."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The request as sent."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Scalar] | None = None
    outputs: list[RequestedOutput] | None = None


_decoder = msgspec.json.Decoder(InferRequest)


def decode(body: bytes) -> InferRequest:
    """The request in a JSON body. Raises Malformed with the place and the reason."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Malformed("infer request", got=str(error), expected="an Open Inference Protocol v2 request") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("infer request", got=f"a body that is not JSON: {error}", expected="JSON") from None
    for tensor in request.inputs:
        _flatten(tensor)
    return request


def _flatten(tensor: Tensor) -> None:
    """Make `data` flat and hold it against `shape`. Raises Malformed."""
    shape = tensor.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 0:
        raise Malformed(f"input {tensor.name}: shape", got=shape, expected="[rows] or [rows, 1]")
    if len(shape) == 2 and tensor.data and isinstance(tensor.data[0], list):
        if not all(isinstance(item, list) and len(item) == 1 for item in tensor.data):
            raise Malformed(f"input {tensor.name}: data", got="ragged lists", expected=f"the shape {shape}")
        tensor.data = [item[0] for item in tensor.data]
    if len(tensor.data) != shape[0]:
        raise Malformed(
            f"input {tensor.name}: data", got=f"{len(tensor.data)} values", expected=f"{shape[0]} by its shape"
        )
