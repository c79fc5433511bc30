"""Trying a release out where it lies."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import Columns, InputField
from pipelines.settings import Settings
from pipelines.wiring.scoring import load_release, score, score_of


def answer_sample(settings: Settings, digest: str) -> dict[str, Any]:
    """Verify a bundle, answer its sample request without view features, and return the outputs of its one row.

    Raises NotFoundError, or ContractError when a file is not what the manifest says or the answer is not valid.
    """
    release = load_release(settings, digest)
    body = json.loads((release.folder / "sample_request.json").read_text())
    sent = {tensor["name"]: tensor["data"] for tensor in body["inputs"]}
    inputs: Columns = {field.name: _column(field, sent.get(field.name)) for field in release.manifest.inputs}
    missing = {(pin.view, name): np.array([np.nan]) for pin in release.manifest.views for name in pin.features}
    scored = score(release, inputs, missing, 1, threads=1)
    if not release.valid(score_of(release, scored)):
        raise ContractError(
            f"release {digest[:12]}: sample request", got=scored.outputs, expected="a score in the contract's range"
        )
    return {name: values[0].item() for name, values in scored.outputs.items()}


def _column(field: InputField, values: list[Any] | None) -> np.ndarray:
    if field.datatype == "BYTES":
        return np.array(values or [None], dtype=object)
    return np.array(values or [np.nan])
