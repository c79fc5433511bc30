"""The infer request of the Open Inference Protocol v2: JSON, alone or with binary tensor data behind it.

gRPC builds the same `InferRequest` (serving/oip/grpc_messages.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from serving.oip.datatypes import FLOATS, NUMERIC
from serving.oip.errors import Malformed
from serving.oip.tensor_bytes import from_bytes

if TYPE_CHECKING:
    Data = list[Any] | np.ndarray
else:
    Data = list[Any]  # what a JSON decoder can make; arrays come from binary data

# Content types of MLServer's codecs whose data are not the values themselves.
_ENCODED = ("base64", "pd_json")


class Tensor(msgspec.Struct):
    """One named input. `shape` is [rows] or [rows, 1].

    `data` is flat after decoding, in row order: a list of JSON values or of text, or a numpy array of the datatype.
    """

    name: str
    datatype: str
    shape: list[int]
    data: Data = None  # type: ignore[assignment]  # until `decode` has filled it or refused the tensor
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """One output the client asks for; without any, all are sent."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The request as sent."""

    inputs: list[Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


_decoder = msgspec.json.Decoder(InferRequest)


def decode(body: bytes, header_length: int | None = None) -> InferRequest:
    """The request in a body: JSON, or `header_length` bytes of JSON with binary tensor data behind them.

    Raises Malformed with the place and the reason.
    """
    if header_length is None:
        request = _decoded(body)
        for tensor in request.inputs:
            shape, data = tensor.shape, tensor.data
            if tensor.parameters is None and isinstance(data, list) and len(shape) == 1 and len(data) == shape[0]:
                continue  # flat already; nearly every request
            if tensor.parameters:
                check_parameters(tensor, binary=False)
            _flatten(tensor)
        return request
    if header_length > len(body):
        raise Malformed("Inference-Header-Content-Length", got=header_length, expected=f"at most {len(body)}, the body")
    whole = memoryview(body)
    request = _decoded(whole[:header_length])
    _attach(request.inputs, whole[header_length:])
    return request


def check_shape(tensor: Tensor) -> int:
    """The rows of the tensor. Raises Malformed unless its shape is [rows] or [rows, 1]."""
    shape = tensor.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 0:
        raise Malformed(f"input {tensor.name}: shape", got=shape, expected="[rows] or [rows, 1]")
    return shape[0]


def _decoded(body: bytes | memoryview) -> InferRequest:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Malformed("infer request", got=str(error), expected="an Open Inference Protocol v2 request") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("infer request", got=f"a body that is not JSON: {error}", expected="JSON") from None


def check_parameters(tensor: Tensor, *, binary: bool) -> None:
    """Refuse what would make the data something else than it looks."""
    assert tensor.parameters is not None
    where = f"input {tensor.name}: parameters"
    if "shared_memory_region" in tensor.parameters:
        raise Malformed(where, got="shared_memory_region", expected="the data in the request")
    if not binary and "binary_data_size" in tensor.parameters:
        raise Malformed(where, got="binary_data_size", expected="the header Inference-Header-Content-Length with it")
    if tensor.parameters.get("content_type") in _ENCODED:
        got = f"content_type {tensor.parameters['content_type']}"
        raise Malformed(where, got=got, expected="plain values (content_type np, pd or str)")


def _attach(tensors: list[Tensor], part: memoryview) -> None:
    """Give the tensors their values: those with a `binary_data_size` from `part`, in order, the others from JSON."""
    if _attach_alike(tensors, part):
        return
    at = 0
    for tensor in tensors:
        if not tensor.parameters:
            _flatten(tensor)
            continue
        check_parameters(tensor, binary=True)
        if "binary_data_size" not in tensor.parameters:
            _flatten(tensor)
            continue
        size = tensor.parameters["binary_data_size"]
        where = f"input {tensor.name}: parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= len(part) - at:
            raise Malformed(where, got=size, expected=f"0 to {len(part) - at}, the bytes that follow")
        if isinstance(tensor.data, list):
            raise Malformed(where, got="data as well", expected="one of the two")
        tensor.data = from_bytes(tensor.name, tensor.datatype, check_shape(tensor), part[at : at + size])
        at += size
    if at != len(part):
        raise Malformed("binary data", got=f"{len(part)} bytes", expected=f"{at}, the sum of all binary_data_size")


def _attach_alike(tensors: list[Tensor], part: memoryview) -> bool:
    """Give float tensors of one datatype and shape, of which `part` is all the data, their values at once.

    Most requests are such. False for all others, and then nothing is done.
    """
    if not tensors or tensors[0].datatype not in FLOATS:
        return False
    datatype, shape = tensors[0].datatype, tensors[0].shape
    dtype = NUMERIC[datatype]
    if len(shape) != 1 or shape[0] < 1 or len(part) != len(tensors) * shape[0] * dtype.itemsize:
        return False
    for tensor in tensors:
        if tensor.datatype != datatype or tensor.shape != shape or isinstance(tensor.data, list):
            return False
        given = tensor.parameters
        size = given.get("binary_data_size") if given is not None and len(given) == 1 else None
        if type(size) is not int or size * len(tensors) != len(part):
            return False
    for tensor, values in zip(tensors, np.frombuffer(part, dtype).reshape(len(tensors), shape[0]), strict=True):
        tensor.data = values
    return True


def _flatten(tensor: Tensor) -> None:
    """Make a list of `data` flat and hold it against `shape`. Raises Malformed."""
    data, rows = tensor.data, check_shape(tensor)
    if not isinstance(data, list):
        raise Malformed(f"input {tensor.name}", got="no data", expected="data, or binary_data_size in parameters")
    if len(tensor.shape) == 2 and data and isinstance(data[0], list):
        if not all(isinstance(item, list) and len(item) == 1 for item in data):
            raise Malformed(f"input {tensor.name}: data", got="ragged lists", expected=f"the shape {tensor.shape}")
        data = tensor.data = [item[0] for item in data]
    if len(data) != rows:
        raise Malformed(f"input {tensor.name}: data", got=f"{len(data)} values", expected=f"{rows} by its shape")
