"""What every step from a fit to a release needs: the installation's candidates, their specs, sources and drafts."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import pyarrow as pa

from pipelines.contracts.canonical import digest, file_digest
from pipelines.contracts.pii import KeyedHash
from pipelines.contracts.release import Manifest
from pipelines.registry.model_card import model_card
from pipelines.settings import PROJECT, Settings
from pipelines.spec.model import ModelSpec
from pipelines.training import recipe, training_set
from pipelines.training.candidate import Candidate, Candidates
from pipelines.training.draft import Draft
from pipelines.wiring.scoring import load_release

_ADAPTERS = ("lightgbm_trainer.py", "sklearn_trainer.py", "onnx_export.py")


def candidates(settings: Settings) -> Candidates:
    """The installation's candidates."""
    return Candidates(settings.root / "candidates")


def candidate_of(settings: Settings, release: str) -> str:
    """The id of the candidate that a release was made from."""
    return str(load_release(settings, release).manifest.training["candidate"])


def spec_of(made: Candidate) -> ModelSpec:
    """The model spec that a candidate was fitted by."""
    return ModelSpec.model_validate_json(msgspec.json.encode(made.spec))


def labelled(table: pa.Table) -> pa.Table:
    """The rows of a training set whose truth is known; a candidate's positions count these."""
    return table.filter(table.column("label").is_valid())


def spec_digest(spec: ModelSpec) -> str:
    """SHA-256 of a model spec as it is understood."""
    return digest(spec.model_dump(mode="json"))


def code_digests(settings: Settings, spec: ModelSpec) -> dict[str, str]:
    """Digests of the sources and of the lock that a candidate is made with."""
    include = settings.include_dir
    sources = {
        "requests": include / "transforms" / spec.requests.transform.partition(":")[0],
        "labels": include / "transforms" / spec.labels.transform.partition(":")[0],
        "request_features": recipe.request_features_source(spec, include),
        "postprocess": recipe.postprocess_source(spec, include, {"kind": spec.training.calibration}),
        "lock": PROJECT / "requirements.txt",
    }
    found = {name: file_digest(path) for name, path in sources.items() if path is not None and path.is_file()}
    return {**found, "training": _training_code()}


@cache
def _training_code() -> str:
    """One digest over the sources that fit and export."""
    folder = PROJECT / "pipelines"
    paths = sorted([*(folder / "training").glob("*.py"), *(folder / "adapters" / name for name in _ADAPTERS)])
    return digest({path.name: file_digest(path) for path in paths})


def draft_of(settings: Settings, spec: ModelSpec, calibration: dict[str, Any]) -> Draft:
    """The release that the spec describes, run from its sources."""
    include = settings.include_dir
    return Draft(
        _under_key(settings, recipe.draft_manifest(spec, include, calibration)),
        recipe.request_features_source(spec, include),
        recipe.postprocess_source(spec, include, calibration),
    )


def _under_key(settings: Settings, manifest: Manifest) -> Manifest:
    """The manifest, telling under which key its personal inputs are hashed."""
    if not any(field.pii for field in manifest.inputs):
        return manifest
    key = KeyedHash(settings.pii_key.get_secret_value())
    return msgspec.structs.replace(manifest, pii_key=key.key_id)


def card_of(
    manifest: Manifest,
    spec: ModelSpec,
    made: Candidate,
    metrics: dict[str, Any],
    training: training_set.Manifest,
    sentences: list[str],
) -> str:
    """The model card of a release; `sentences` are the offline gates' words."""
    return model_card(
        manifest,
        description=spec.description,
        owner=spec.owner,
        metrics=metrics,
        importance=made.importance,
        gates=sentences,
        training=msgspec.to_builtins(training),
    )
