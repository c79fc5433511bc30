"""The job that writes a candidate as a release bundle, proven on real rows."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.onnx_runtime import OnnxModel
from pipelines.contracts.errors import ContractError, DataError
from pipelines.contracts.release import Manifest, Release
from pipelines.registry import bundle
from pipelines.registry.versions import next_version
from pipelines.settings import Settings
from pipelines.spec.model import ModelSpec
from pipelines.training import recipe, training_set
from pipelines.training.candidate import Candidate
from pipelines.training.columns import features_of, inputs_of, microseconds
from pipelines.training.draft import Draft
from pipelines.training.profile import profile
from pipelines.training.trainer import Matrix
from pipelines.wiring.scoring import load_release, score, score_of
from pipelines.wiring.training_candidates import (
    candidates,
    card_of,
    code_digests,
    draft_of,
    labelled,
    spec_of,
)

PARITY = {"binary": 1e-5, "regression": 1e-3}
PROFILE_DAYS_US = 30 * 86_400_000_000


def export(settings: Settings, candidate: str) -> str:
    """Write the release bundle, proven on real rows, and return its digest.

    The whole chain (request features, ONNX model, post-processing) loaded from the bundle must give the scores of the
    fitting library within `PARITY`. Raises ContractError otherwise, and nothing is installed.
    """
    store = candidates(settings)
    if (done := store.release(candidate)) is not None and (settings.releases / done).is_dir():
        return done
    made, metrics = store.load(candidate), store.metrics(candidate)
    spec = spec_of(made)
    if (now := code_digests(settings, spec)) != made.code:
        raise DataError(
            f"sources of candidate {candidate}",
            got=now,
            expected=made.code,
            hint="They changed after the fit: fit again.",
        )
    table, training = training_set.read(settings.training_sets, made.training_set)
    draft = draft_of(settings, spec, made.calibration)
    files = _source_files(settings, spec, made.calibration)
    files["model.onnx"] = store.onnx(candidate)
    files["metrics.json"] = bundle.json_file(metrics)
    files["reference.json"] = bundle.json_file(_reference(draft, files["model.onnx"], table))
    files["sample_request.json"] = bundle.json_file(_sample_request(draft.manifest, table))
    manifest = msgspec.structs.replace(
        draft.manifest, training=_lineage(made, spec, training), created_us=made.as_of_us
    )
    numbered = msgspec.structs.replace(manifest, files=bundle.file_digests(files))
    semver, change = _version(settings, numbered)
    manifest = msgspec.structs.replace(manifest, semver=semver, training={**manifest.training, "change": change})
    files["model_card.md"] = card_of(manifest, spec, made, metrics, training, []).encode()
    with bundle.staged(settings.releases, manifest, files) as staged:
        _prove(Release(staged.folder, staged.digest), store.arrays(candidate, "parity"), table, draft)
        release = bundle.install(settings.releases, staged)
    store.put_release(candidate, release)
    return release


def _source_files(settings: Settings, spec: ModelSpec, calibration: dict[str, Any]) -> dict[str, bytes]:
    include = settings.include_dir
    found = {
        "request_features.py": recipe.request_features_source(spec, include),
        "postprocess.py": recipe.postprocess_source(spec, include, calibration),
    }
    return {name: path.read_bytes() for name, path in found.items() if path is not None}


def _matrix(release: Release, table: pa.Table) -> Matrix:
    inputs = inputs_of(table, release.manifest.inputs)
    return release.matrix(inputs, features_of(table, release.manifest.views), table.num_rows)


def _reference(draft: Draft, onnx: bytes, table: pa.Table) -> dict[str, Any]:
    """The profile of the training set's last 30 days, censored rows included, with the released model's scores."""
    event_us = microseconds(table.column("event_timestamp"))
    start = int(np.searchsorted(event_us, event_us[-1] - PROFILE_DAYS_US))
    rows = table.slice(start)
    inputs = inputs_of(rows, draft.manifest.inputs)
    matrix = _matrix(draft, rows)
    scores = draft.outputs(OnnxModel(onnx).predict(matrix), inputs)[draft.manifest.output.score]
    names = [feature.name for feature in draft.manifest.features]
    label = rows.column("label").cast(pa.float64()).to_numpy(zero_copy_only=False)
    return profile(names, matrix, inputs, scores, label, from_us=int(event_us[start]), to_us=int(event_us[-1]))


def _sample_request(manifest: Manifest, table: pa.Table) -> dict[str, Any]:
    """The newest request with every input present, as an Open Inference Protocol body."""
    names = [field.name for field in manifest.inputs if field.name in table.column_names]
    row = {}
    for index in range(table.num_rows - 1, -1, -1):
        row = table.slice(index, 1).select(names).to_pylist()[0]
        if all(value is not None for value in row.values()):
            break
    tensors = [
        {"name": field.name, "datatype": field.datatype, "shape": [1], "data": [row[field.name]]}
        for field in manifest.inputs
        if row.get(field.name) is not None
    ]
    return {"id": "sample", "inputs": tensors}


def _lineage(made: Candidate, spec: ModelSpec, training: training_set.Manifest) -> dict[str, Any]:
    """What the manifest says about the release's making; the semantic version compares some of it."""
    return {
        "candidate": made.id,
        "training_set": made.training_set,
        "as_of_us": made.as_of_us,
        "last_label_us": training.last_label_us,
        "rows": training.labelled,
        "spec_digest": made.spec_digest,
        "trainer": made.trainer,
        "fixed_params": dict(spec.training.params),
        "params": made.params,
        "calibration": spec.training.calibration,
        "seed": spec.training.seed,
        "code": made.code,
    }


def _version(settings: Settings, manifest: Manifest) -> tuple[str, str]:
    """The next version after the champion; before there is one, after the newest release."""
    db = control_db(settings)
    rows = db.releases(manifest.model)
    base = db.champion(manifest.model) or (rows[-1].digest if rows else None)
    previous = load_release(settings, base).manifest if base else None
    return next_version(previous, manifest, {row.semver for row in rows})


def _prove(release: Release, parity: dict[str, np.ndarray], table: pa.Table, draft: Draft) -> None:
    rows = labelled(table).take(pa.array(parity["position"]))
    inputs = inputs_of(rows, release.manifest.inputs)
    features = features_of(rows, release.manifest.views)
    served = score_of(release, score(release, inputs, features, rows.num_rows, threads=1))
    expected = np.asarray(draft.outputs(parity["raw"], inputs)[release.manifest.output.score], dtype=np.float64)
    worst = float(np.abs(served - expected).max())
    allowed = PARITY[release.manifest.task]
    if not worst <= allowed:
        raise ContractError(
            "ONNX parity",
            got=f"a score {worst:.2e} away on {rows.num_rows} real rows",
            expected=f"at most {allowed:g}",
            hint="The bundle would answer otherwise than the model that was measured.",
        )
