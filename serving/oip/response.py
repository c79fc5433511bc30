"""Answers of the Open Inference Protocol v2: JSON, and binary tensor data for outputs that ask for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from pipelines.contracts.release import Manifest
from serving.oip.datatypes import Scalar
from serving.oip.errors import Malformed
from serving.oip.request import InferRequest
from serving.oip.tensor_bytes import to_bytes

_encode = msgspec.json.Encoder().encode

# Extensions of other servers that would change what an output is; to ignore them would be to answer something else.
_NOT_SERVED = ("shared_memory_region", "classification")


class Prediction(msgspec.Struct):
    """What a release said to a request, before it is put into any form. `outputs` has one value a row."""

    id: str
    manifest: Manifest
    outputs: dict[str, list[Scalar]]
    parameters: dict[str, Any]


def to_json(value: object) -> bytes:
    """JSON bytes; NaN and infinities become null."""
    return _encode(value)


def error_body(message: str) -> bytes:
    """The protocol's error object."""
    return _encode({"error": message})


def check_outputs(request: InferRequest, manifest: Manifest) -> None:
    """Raises Malformed when the request asks for an output that the release does not have, or in a form it cannot."""
    if request.parameters is not None:
        _flag("parameters.binary_data_output", request.parameters.get("binary_data_output"))
    named: set[str] = set()
    for output in request.outputs or ():
        if output.name not in manifest.output.fields:
            raise Malformed("outputs", got=output.name, expected=f"some of {sorted(manifest.output.fields)}")
        if output.name in named:
            raise Malformed(f"output {output.name}", got="it twice", expected="it once")
        named.add(output.name)
        if output.parameters is not None:
            where = f"output {output.name}: parameters"
            _flag(f"{where}.binary_data", output.parameters.get("binary_data"))
            if unserved := [name for name in _NOT_SERVED if name in output.parameters]:
                raise Malformed(where, got=unserved[0], expected="binary_data alone")


def _flag(where: str, value: object) -> None:
    if value is not None and type(value) is not bool:
        raise Malformed(where, got=value, expected="true or false")


def output_names(request: InferRequest, manifest: Manifest) -> Sequence[str]:
    """The outputs to send, in order: those the request names, or all of the release."""
    fields = manifest.output.fields
    return [one.name for one in request.outputs if one.name in fields] if request.outputs else list(fields)


def infer_answer(request: InferRequest, prediction: Prediction) -> tuple[bytes, int | None]:
    """The answer's bytes, and how many of them are JSON when binary tensor data follow (else None)."""
    manifest = prediction.manifest
    fields = manifest.output.fields
    names = output_names(request, manifest)
    binary = _binary_outputs(request, names)
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name in names:
        values = prediction.outputs[name]
        output: dict[str, Any] = {"name": name, "datatype": fields[name], "shape": [len(values)]}
        # An output with values that have no bytes (a null in a whole number) is sent as JSON all the same.
        if name in binary and (part := to_bytes(fields[name], values)) is not None:
            output["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            output["data"] = values
        outputs.append(output)
    head = _encode(
        {
            "model_name": manifest.model,
            "model_version": manifest.semver,
            "id": prediction.id,
            "parameters": prediction.parameters,
            "outputs": outputs,
        }
    )
    return (head, None) if not parts else (b"".join((head, *parts)), len(head))


def _binary_outputs(request: InferRequest, names: Sequence[str]) -> Collection[str]:
    """The outputs asked for as binary data; what an output says for itself goes before what the request says."""
    whole = request.parameters is not None and request.parameters.get("binary_data_output") is True
    if request.outputs:
        return {one.name for one in request.outputs if (one.parameters or {}).get("binary_data", whole) is True}
    return names if whole else ()


def server_metadata() -> dict[str, Any]:
    """The server's metadata object."""
    return {"name": "slipway", "version": "0.1.0", "extensions": ["binary_tensor_data"]}


def model_metadata(manifest: Manifest, versions: list[str]) -> dict[str, Any]:
    """The model's metadata object."""
    return {
        "name": manifest.model,
        "versions": versions,
        "platform": "onnx_onnxruntime",
        "inputs": [{"name": one.name, "datatype": one.datatype, "shape": [-1]} for one in manifest.inputs],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in manifest.output.fields.items()],
    }
