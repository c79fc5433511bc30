"""Infer requests and answers as messages of the gRPC service: raw contents, or the typed ones.

An answer has the form of its request: raw contents for raw contents (as tritonclient sends them), typed for typed, and
raw wherever an output is FP16, which has no typed contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.oip.datatypes import DATATYPES, NUMERIC
from serving.oip.errors import Malformed, ModelFailed
from serving.oip.grpc_messages import message_class
from serving.oip.request import InferRequest, RequestedOutput, Tensor, check_parameters, check_shape
from serving.oip.response import Prediction, output_names
from serving.oip.tensor_bytes import from_bytes, to_bytes

_ModelInferResponse = message_class("ModelInferResponse")

# Datatype to the field of InferTensorContents that holds it. FP16 has none.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def infer_request(message: Any) -> InferRequest:
    """The request in a ModelInferRequest. Raises Malformed."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Malformed("raw_input_contents", got=f"{len(raw)}", expected=f"{len(message.inputs)}, one an input")
    tensors: list[Tensor] = []
    for index, sent in enumerate(message.inputs):
        tensor = Tensor(sent.name, sent.datatype, list(sent.shape), parameters=_plain(sent.parameters))
        if tensor.parameters:
            check_parameters(tensor, binary=True)
        rows = check_shape(tensor)
        if not raw:
            tensor.data = _typed(tensor, rows, sent.contents)
        elif sent.contents.ByteSize():  # MLServer sends empty contents along
            raise Malformed(f"input {sent.name}: contents", got="raw_input_contents as well", expected="one of the two")
        else:
            tensor.data = from_bytes(sent.name, sent.datatype, rows, raw[index])
        tensors.append(tensor)
    return InferRequest(
        tensors,
        message.id or None,
        _plain(message.parameters),
        [RequestedOutput(one.name, _plain(one.parameters)) for one in message.outputs] or None,
    )


def _typed(tensor: Tensor, rows: int, contents: Any) -> list[Any] | np.ndarray:
    name, datatype = tensor.name, tensor.datatype
    field = _CONTENTS.get(datatype)
    if field is None:
        if datatype == "FP16":
            raise Malformed(f"input {name}", got="no raw_input_contents", expected="them: FP16 has no other form")
        raise Malformed(f"input {name}: datatype", got=datatype, expected=f"one of {list(DATATYPES)}")
    values: list[Any] = list(getattr(contents, field))
    if len(values) != rows:
        raise Malformed(f"input {name}: {field}", got=f"{len(values)} values", expected=f"{rows} by its shape")
    if datatype == "BYTES":
        try:
            return [value.decode() for value in values]
        except UnicodeDecodeError as error:
            raise Malformed(f"input {name}", got=str(error), expected="UTF-8 text") from None
    # As an array, NaN means null, as it does in raw contents.
    return np.array(values, dtype=NUMERIC[datatype]) if datatype in ("FP32", "FP64") else values


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters as Python values."""
    if not parameters:
        return None
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise Malformed(f"parameters.{name:.80}", got="no value", expected="one")
        found[name] = getattr(parameter, choice)
    return found


def infer_response(request: InferRequest, prediction: Prediction, *, raw: bool) -> Any:
    """The ModelInferResponse. `raw`: whether the request came in raw contents. Raises ModelFailed.

    A null number is NaN; a null of another datatype has no form here, and is the release's failure.
    """
    manifest = prediction.manifest
    fields = manifest.output.fields
    names = output_names(request, manifest)
    raw = raw or any(fields[name] not in _CONTENTS for name in names)
    made = _ModelInferResponse(model_name=manifest.model, model_version=manifest.semver, id=prediction.id)
    _put(made.parameters, prediction.parameters)
    for name in names:
        values, datatype = prediction.outputs[name], fields[name]
        output = made.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        part = to_bytes(datatype, values)
        if part is None:
            raise ModelFailed(
                f"output {name}", got=f"{values!r:.80}", expected=f"values of {datatype}, none of them null"
            )
        if raw:
            made.raw_output_contents.append(part)
        elif datatype == "BYTES":
            output.contents.bytes_contents.extend([str(value).encode() for value in values])
        else:
            # By way of the bytes, so that every number is one of its datatype.
            getattr(output.contents, _CONTENTS[datatype]).extend(np.frombuffer(part, NUMERIC[datatype]).tolist())
    return made


def _put(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = value
        else:
            parameters[name].string_param = value
