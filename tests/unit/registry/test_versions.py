"""Semantic versions: one case a reason."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import InputField, Manifest, ModelFeature, OutputContract, ViewPin
from pipelines.registry.versions import change, next_version, parse

BASE = Manifest(
    model="m",
    semver="1.2.3",
    task="binary",
    inputs=[InputField(name="a", datatype="FP64"), InputField(name="b", datatype="BYTES", required=False)],
    views=[ViewPin(view="v__1111", entity={"b": "b"}, join_key_types={"b": "string"}, features=["f"])],
    features=[ModelFeature(name="a", source="input"), ModelFeature(name="f", source="view", view="v__1111")],
    output=OutputContract(low=0.0, high=1.0, fields={"score": "FP64", "decision": "BOOL"}),
    postprocess_params={"threshold": 0.3, "calibration": {"kind": "platt", "a": 1.0, "b": 0.0}},
    files={"postprocess.py": "1"},
    training={"trainer": "lightgbm"},
)
NEW_INPUT = InputField(name="c", datatype="FP64")


def _output(**changed: Any) -> dict[str, Any]:
    return {"output": msgspec.structs.replace(BASE.output, **changed)}


@pytest.mark.parametrize(
    ("changed", "kind", "reason"),
    [
        ({"inputs": [*BASE.inputs, NEW_INPUT]}, "major", "input c is new and required"),
        ({"inputs": BASE.inputs[:1]}, "major", "input b is gone"),
        ({"inputs": [InputField(name="a", datatype="INT64"), BASE.inputs[1]]}, "major", "input a is INT64, was FP64"),
        ({"inputs": [BASE.inputs[0], InputField(name="b", datatype="BYTES")]}, "major", "input b is now required"),
        (_output(fields={"score": "FP64"}), "major", "output decision is gone"),
        (_output(fields={"score": "FP64", "decision": "INT64"}), "major", "output decision is INT64, was BOOL"),
        (_output(high=2.0), "major", "the score's range is wider"),
        (_output(low=None), "major", "the score's range is wider"),
        (_output(high=0.9), "minor", "output changed"),
        (_output(fields={"score": "FP64", "decision": "BOOL", "band": "INT64"}), "minor", "output changed"),
        (
            {"inputs": [*BASE.inputs, InputField(name="c", datatype="FP64", required=False)]},
            "minor",
            "inputs changed",
        ),
        ({"features": BASE.features[:1]}, "minor", "features changed"),
        ({"postprocess_params": {"threshold": 0.5}}, "minor", "post-processing parameters changed"),
        ({"files": {"postprocess.py": "2"}}, "minor", "postprocess.py changed"),
        ({"training": {"trainer": "logistic"}}, "minor", "training trainer changed"),
        (
            {"postprocess_params": {"threshold": 0.3, "calibration": {"kind": "platt", "a": 0.9, "b": 0.1}}},
            "patch",
            "the same recipe on other rows",
        ),
        ({"files": {"postprocess.py": "1", "model.onnx": "9"}}, "patch", "the same recipe on other rows"),
    ],
)
def test_kinds_of_change(changed: dict[str, Any], kind: str, reason: str) -> None:
    assert change(BASE, msgspec.structs.replace(BASE, **changed)) == (kind, reason)


@pytest.mark.parametrize(
    ("changed", "taken", "expected"),
    [
        ({"files": {"postprocess.py": "1", "model.onnx": "9"}}, set(), "1.2.4"),
        ({"files": {"postprocess.py": "1", "model.onnx": "9"}}, {"1.2.4", "1.2.5"}, "1.2.6"),
        ({"features": BASE.features[:1]}, {"1.2.4"}, "1.3.0"),
        ({"inputs": BASE.inputs[:1]}, {"2.0.0"}, "3.0.0"),
    ],
)
def test_a_taken_version_is_stepped_over(changed: dict[str, Any], taken: set[str], expected: str) -> None:
    assert next_version(BASE, msgspec.structs.replace(BASE, **changed), taken)[0] == expected


def test_the_first_release_is_one() -> None:
    assert next_version(None, BASE, set()) == ("1.0.0", "the first release")


@pytest.mark.parametrize("text", ["1.2", "v1.2.3", "1.2.x", ""])
def test_other_texts_are_no_versions(text: str) -> None:
    with pytest.raises(ContractError, match="MAJOR"):
        parse(text)
