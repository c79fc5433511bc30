"""Semantic versions of releases: what callers must know, by comparing contracts.

major   a caller that worked may break: an input is new and required, gone or of another type; an output field is
        gone or of another type; the score is called otherwise or may leave its old range
minor   the behaviour is meant to differ: features, views, sources, trainer, parameters; inputs or outputs were added
patch   the same recipe on other rows
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pipelines.contracts.errors import ContractError
from pipelines.contracts.release import Manifest, OutputContract

Change = Literal["major", "minor", "patch"]
_RECIPE = ("trainer", "fixed_params", "calibration")


def change(previous: Manifest, new: Manifest) -> tuple[Change, str]:
    """What kind of change `new` is to a caller of `previous`, and the first reason found."""
    if reason := _breaks(previous, new):
        return "major", reason
    if reason := _behaves(previous, new):
        return "minor", reason
    return "patch", "the same recipe on other rows"


def next_version(previous: Manifest | None, new: Manifest, taken: Collection[str]) -> tuple[str, str]:
    """(version, reason) for `new` after `previous`; a version that is taken is stepped over. The first one is 1.0.0."""
    if previous is None:
        version, kind, reason = (1, 0, 0), "patch", "the first release"
    else:
        kind, reason = change(previous, new)
        version = _bump(parse(previous.semver), kind)
    while _text(version) in taken:
        version = _bump(version, kind)
    return _text(version), reason


def parse(version: str) -> tuple[int, int, int]:
    """(major, minor, patch). Raises ContractError."""
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ContractError("semantic version", got=version, expected="MAJOR.MINOR.PATCH")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _bump(version: tuple[int, int, int], kind: str) -> tuple[int, int, int]:
    major, minor, patch = version
    if kind == "major":
        return major + 1, 0, 0
    return (major, minor + 1, 0) if kind == "minor" else (major, minor, patch + 1)


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(str(part) for part in version)


def _breaks(previous: Manifest, new: Manifest) -> str:
    before = {field.name: field for field in previous.inputs}
    after = {field.name: field for field in new.inputs}
    for name, field in after.items():
        if field.required and name not in before:
            return f"input {name} is new and required"
        if field.required and not before[name].required:
            return f"input {name} is now required"
        if name in before and before[name].datatype != field.datatype:
            return f"input {name} is {field.datatype}, was {before[name].datatype}"
    for name in before:
        if name not in after:
            return f"input {name} is gone"
    return _output_breaks(previous.output, new.output)


def _output_breaks(before: OutputContract, after: OutputContract) -> str:
    for name, datatype in before.fields.items():
        if name not in after.fields:
            return f"output {name} is gone"
        if after.fields[name] != datatype:
            return f"output {name} is {after.fields[name]}, was {datatype}"
    if before.score != after.score:
        return f"the score is output {after.score}, was {before.score}"
    lower = before.low is not None and (after.low is None or after.low < before.low)
    higher = before.high is not None and (after.high is None or after.high > before.high)
    return "the score's range is wider" if lower or higher else ""


def _behaves(previous: Manifest, new: Manifest) -> str:
    for what, before, after in (
        ("inputs", previous.inputs, new.inputs),
        ("output", previous.output, new.output),
        ("features", previous.features, new.features),
        ("views", previous.views, new.views),
        ("on_features_unavailable", previous.on_features_unavailable, new.on_features_unavailable),
        ("on_failure", previous.on_failure, new.on_failure),
        ("post-processing parameters", _given(previous), _given(new)),
    ):
        if before != after:
            return f"{what} changed"
    for name in ("request_features.py", "postprocess.py"):
        if previous.files.get(name) != new.files.get(name):
            return f"{name} changed"
    for name in _RECIPE:
        if previous.training.get(name) != new.training.get(name):
            return f"training {name} changed"
    return ""


def _given(manifest: Manifest) -> dict[str, object]:
    """Post-processing parameters of the spec: the calibration is learnt from rows."""
    return {name: value for name, value in manifest.postprocess_params.items() if name != "calibration"}
