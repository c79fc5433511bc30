"""A model spec as the parts of a release manifest: inputs, pinned views, the columns of the matrix, the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from pipelines.contracts.release import Batching, InputField, Manifest, ModelFeature, OutputContract, ViewPin
from pipelines.spec.loading import load_dataset, load_view
from pipelines.spec.model import ModelSpec
from pipelines.spec.personal import personal_inputs

PLAIN_POSTPROCESS = Path(__file__).with_name("plain_postprocess.py")


def draft_manifest(spec: ModelSpec, include: Path, calibration: dict[str, Any]) -> Manifest:
    """The manifest of a release of this spec, without files, version and lineage. Views are pinned as they are now."""
    pins = view_pins(spec, include)
    hashed = _hashed_inputs(spec, include)
    params: dict[str, Any] = dict(spec.postprocess.params) if spec.postprocess else {}
    if postprocess_source(spec, include, calibration) == PLAIN_POSTPROCESS:
        params |= {"score": spec.output.score, "low": spec.output.low, "high": spec.output.high}
    if calibration.get("kind", "none") != "none":
        params["calibration"] = calibration
    return Manifest(
        model=spec.name,
        semver="0.0.0",
        task=spec.task,
        inputs=[
            InputField(
                name=name,
                datatype=field.datatype,
                required=field.required,
                pii=True if name in hashed else msgspec.UNSET,
            )
            for name, field in spec.inputs.items()
        ],
        views=pins,
        features=matrix_features(spec, pins),
        on_features_unavailable=spec.on_features_unavailable,
        on_failure=spec.on_failure,
        output=OutputContract(
            score=spec.output.score, low=spec.output.low, high=spec.output.high, fields=dict(spec.output.fields)
        ),
        postprocess_params=params,
        files={},
        dropped_inputs=list(spec.dropped_inputs) or msgspec.UNSET,
        batching=_batching(spec),
    )


def _batching(spec: ModelSpec) -> Batching | msgspec.UnsetType:
    asked = spec.serving.batching
    return msgspec.UNSET if asked is None else Batching(max_size=asked.max_size, max_wait_ms=asked.max_wait_ms)


def _hashed_inputs(spec: ModelSpec, include: Path) -> frozenset[str]:
    views = {use.view: load_view(include, use.view) for use in spec.views}
    names = {*spec.datasets(), *(name for view in views.values() for name in view.datasets)}
    return personal_inputs(spec, views, {name: load_dataset(include, name) for name in names})


def view_pins(spec: ModelSpec, include: Path) -> list[ViewPin]:
    """The views the model reads, each in the version its transform has now."""
    pins = []
    for use in spec.views:
        view = load_view(include, use.view)
        pins.append(
            ViewPin(
                view=view.feast_name(include),
                entity=dict(use.entity),
                join_key_types=dict(view.entity.keys),
                features=list(use.features),
                ttl_us=view.ttl.us if view.ttl else None,
            )
        )
    return pins


def matrix_features(spec: ModelSpec, pins: list[ViewPin]) -> list[ModelFeature]:
    """The matrix's columns: inputs, request features, then view features, with their defaults."""
    columns = [ModelFeature(name=name, source="input") for name in spec.input_features]
    if spec.request_features is not None:
        made = spec.request_features
        columns += [
            ModelFeature(name=name, source="request", default=_number(made.defaults.get(name))) for name in made.names
        ]
    for use, pin in zip(spec.views, pins, strict=True):
        columns += [
            ModelFeature(name=name, source="view", view=pin.view, default=_number(use.defaults.get(name)))
            for name in use.features
        ]
    return columns


def request_features_source(spec: ModelSpec, include: Path) -> Path | None:
    """The source file of the request features."""
    return include / "transforms" / spec.request_features.file if spec.request_features else None


def postprocess_source(spec: ModelSpec, include: Path, calibration: dict[str, Any]) -> Path | None:
    """The source of the post-processing: the spec's own; else the plain one, unless the raw score is the answer."""
    if spec.postprocess is not None:
        return include / "transforms" / spec.postprocess.file
    bounded = spec.output.low is not None or spec.output.high is not None
    plain = spec.output.score == "score" and not bounded and calibration.get("kind", "none") == "none"
    return None if plain else PLAIN_POSTPROCESS


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)
