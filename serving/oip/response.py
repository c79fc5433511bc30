"""Answers of the Open Inference Protocol v2, as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.contracts.release import Manifest
from serving.oip.errors import Malformed
from serving.oip.request import InferRequest, Scalar

_encode = msgspec.json.Encoder().encode


def to_json(value: object) -> bytes:
    """JSON bytes; NaN and infinities become null."""
    return _encode(value)


def error_body(message: str) -> bytes:
    """The protocol's error object."""
    return _encode({"error": message})


def check_outputs(request: InferRequest, manifest: Manifest) -> None:
    """Raises Malformed when the request asks for an output that the release does not have."""
    for output in request.outputs or ():
        if output.name not in manifest.output.fields:
            raise Malformed("outputs", got=output.name, expected=f"some of {sorted(manifest.output.fields)}")


def infer_answer(
    request: InferRequest,
    request_id: str,
    manifest: Manifest,
    outputs: dict[str, list[Scalar]],
    parameters: dict[str, Any],
) -> bytes:
    """The answer's bytes: every output of the release, or those the request names."""
    fields = manifest.output.fields
    names = [one.name for one in request.outputs if one.name in fields] if request.outputs else list(fields)
    return _encode(
        {
            "model_name": manifest.model,
            "model_version": manifest.semver,
            "id": request_id,
            "parameters": parameters,
            "outputs": [
                {"name": name, "datatype": fields[name], "shape": [len(outputs[name])], "data": outputs[name]}
                for name in names
            ],
        }
    )


def model_metadata(manifest: Manifest, versions: list[str]) -> dict[str, Any]:
    """The model's metadata object."""
    return {
        "name": manifest.model,
        "versions": versions,
        "platform": "onnx_onnxruntime",
        "inputs": [{"name": one.name, "datatype": one.datatype, "shape": [-1]} for one in manifest.inputs],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in manifest.output.fields.items()],
    }
