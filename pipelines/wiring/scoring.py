"""Scoring rows by a release as the gateway would: its own views, its own sources, ONNX Runtime."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.adapters.onnx_runtime import OnnxModel
from pipelines.contracts.release import Columns, Release, ViewPin
from pipelines.settings import Settings
from pipelines.training.columns import FeatureColumns, column, inputs_of
from pipelines.training.metrics import Vector
from pipelines.training.trainer import Matrix


class Scored(NamedTuple):
    """The matrix a release made of the rows, the model's raw scores, and all outputs by name."""

    matrix: Matrix
    raw: Vector
    outputs: Columns


def load_release(settings: Settings, digest: str) -> Release:
    """A verified release of this installation."""
    return Release(settings.releases / digest, digest)


def score(release: Release, inputs: Columns, features: FeatureColumns, rows: int, threads: int = 2) -> Scored:
    """Run the release on these columns."""
    matrix = release.matrix(inputs, features, rows)
    raw = OnnxModel(release.onnx_path, threads).predict(matrix)
    return Scored(matrix, raw, release.outputs(raw, inputs))


def score_of(release: Release, scored: Scored) -> Vector:
    """The score column of the outputs, float64."""
    return np.asarray(scored.outputs[release.manifest.output.score], dtype=np.float64)


def score_table(settings: Settings, release: Release, requests: pa.Table) -> Scored:
    """Score past requests (request_id, event_timestamp, inputs) with the features that could be read at their time.

    Raises DataError naming a required input that the table lacks.
    """
    inputs = inputs_of(requests, release.manifest.inputs)
    features = point_in_time(settings, requests, release.manifest.views)
    return score(release, inputs, features, requests.num_rows)


def point_in_time(settings: Settings, requests: pa.Table, pins: list[ViewPin]) -> FeatureColumns:
    """The pinned views' features as of each request's `event_timestamp`, in the order of `requests`."""
    if not pins:
        return {}
    joined = join_views(settings, requests, pins)
    return {(pin.view, name): column(joined.column(name), "FP64") for pin in pins for name in pin.features}


def join_views(settings: Settings, requests: pa.Table, pins: list[ViewPin]) -> pa.Table:
    """The views' features, one row a row of `requests`, each under its own name."""
    from pipelines.wiring import point_in_time

    keys = sorted({name for pin in pins for name in pin.entity.values()})
    joined = point_in_time.historical(settings, requests.select(["event_timestamp", *keys]), pins)
    return joined.select([name for pin in pins for name in pin.features])
