"""MLflow: one run a release with everything that led to it, a model version, and mirrors of roles and status.

Speaks to the tracking server while it answers; else writes straight into its database and artifact folder, in the same
layout, so that the user interface shows the same either way. The control database is the truth; a mirror may lag.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from pipelines.adapters.evaluation_plot import evaluation_plot
from pipelines.contracts.clocks import from_us, wall_us
from pipelines.contracts.errors import NotFoundError, TransientError
from pipelines.contracts.release import Release
from pipelines.settings import Settings
from pipelines.training.candidate import Candidate
from pipelines.training.gates import GateVerdict
from pipelines.training.metrics import Vector
from pipelines.training.training_set import Manifest as TrainingManifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD_TAG = "slipway.record"
"""Number and hash of the entry of the decision record behind a version's other tags."""
ARTIFACT_SCHEME = "mlflow-artifacts:/"
_LONGEST_PARAM = 6000


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A release with all that MLflow is told about it. The three `test_*` arrays are rows of the test part."""

    release: Release
    candidate: Candidate
    metrics: dict[str, Any]
    verdicts: list[GateVerdict]
    status: str
    card: str
    description: str
    training: TrainingManifest
    training_path: Path
    test_event_us: npt.NDArray[np.int64]
    test_label: Vector
    test_score: Vector


def log_release(settings: Settings, entry: Entry) -> str:
    """Log a run and a model version for the release; returns the run's id. A release logged before is found again."""
    from mlflow.entities import Metric, Param

    client = _client(settings)
    manifest = entry.release.manifest
    if (known := _version(client, manifest.model, entry.release.digest)) is not None:
        return str(known.run_id)
    experiment = _experiment(client, manifest.model)
    made = entry.candidate
    run = client.create_run(
        experiment,
        start_time=made.started_us // 1000,
        tags=_tags(entry),
        run_name=f"{manifest.model} {manifest.semver}",
    )
    run_id = str(run.info.run_id)
    now = wall_us() // 1000
    metrics = [Metric(name, value, now, 0) for name, value in _numbers(entry).items()]
    metrics += [Metric(f"study_{made.objective}", trial["value"], now, trial["number"]) for trial in made.trials]
    params = [Param(name, text[:_LONGEST_PARAM]) for name, text in _params(entry).items()]
    client.log_batch(run_id, metrics, params)
    client.log_inputs(run_id, [_dataset(entry)])
    with tempfile.TemporaryDirectory() as folder:
        _artifacts(Path(folder), entry, run_id)
        _upload(settings, client, run_id, str(run.info.artifact_uri), Path(folder))
    client.set_terminated(run_id, "FINISHED")
    _ensure_model(client, manifest.model, entry.description)
    client.create_model_version(
        manifest.model,
        source=f"{run.info.artifact_uri}/release",
        run_id=run_id,
        tags={"semver": manifest.semver, "release": entry.release.digest, "status": entry.status},
        description=entry.card,
        await_creation_for=0,
    )
    return run_id


def set_alias(settings: Settings, model: str, alias: str, digest: str | None) -> None:
    """Point an alias (`champion`, `challenger`, `fallback`) at the release's version; None removes it.

    Raises NotFoundError when the release was never registered.
    """
    client = _client(settings)
    if digest is None:
        if alias in _aliases(client, model):
            client.delete_registered_model_alias(model, alias)
        return
    client.set_registered_model_alias(model, alias, _known_version(client, model, digest).version)


def tag_release(settings: Settings, model: str, digest: str, tags: dict[str, str]) -> None:
    """Set tags of the release's version of `model`. Raises NotFoundError when it was never registered."""
    client = _client(settings)
    version = _known_version(client, model, digest)
    for name, value in tags.items():
        client.set_model_version_tag(model, version.version, name, value)


def record_heads(settings: Settings, model: str) -> dict[int, str]:
    """Hashes of a model's decision record by entry number, as its versions were tagged with them (`RECORD_TAG`).

    Raises TransientError when MLflow cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    try:
        found = _client(settings).search_model_versions(f"name = '{model}'")
    except MlflowException as error:
        raise TransientError("MLflow", got=str(error), expected="the tags of model versions") from error
    heads = [version.tags[RECORD_TAG].partition(" ") for version in found if RECORD_TAG in version.tags]
    return {int(n): digest for n, _, digest in heads}


def attach(settings: Settings, run_id: str, name: str, content: bytes) -> None:
    """Put a file among a run's artifacts, in place of an earlier one of that name (a relative path)."""
    client = _client(settings)
    run = client.get_run(run_id)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        _upload(settings, client, run_id, str(run.info.artifact_uri), Path(folder))


def answers(settings: Settings) -> bool:
    """Whether the installation's tracking server answers now; one that another installation started does not count.

    It was started in this home, or its address was given to the part that asks (as in containers).
    """
    started = (settings.run_dir / "mlflow.json").exists()
    if not started and os.environ.get("MLFLOW_TRACKING_URI") != settings.mlflow_url:
        return False
    try:
        return httpx.get(f"{settings.mlflow_url}/health", timeout=0.5).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _client(settings: Settings) -> MlflowClient:
    if answers(settings):
        return _opened(settings.mlflow_url, os.getpid())
    (settings.root / "mlflow").mkdir(parents=True, exist_ok=True)
    return _opened(settings.mlflow_store, os.getpid())


@cache
def _opened(uri: str, _pid: int) -> MlflowClient:
    """One client a process and address: opening the database store takes seconds, a forked child opens its own."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        shown = re.sub(r"//.*@", "//", uri)  # without the password of a database
        raise TransientError(
            "MLflow", got=str(error), expected=f"an answer of {shown}", hint="slipway status"
        ) from error


def _experiment(client: MlflowClient, model: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(model)
    if found is None:
        try:
            return str(client.create_experiment(model, artifact_location=f"{ARTIFACT_SCHEME}models/{model}"))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(model)
            if found is None:
                raise
    return str(found.experiment_id)


def _ensure_model(client: MlflowClient, model: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=description.strip())
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(client: MlflowClient, model: str, digest: str) -> Any:
    found = client.search_model_versions(f"name = '{model}' and tags.release = '{digest}'")
    return found[0] if found else None


def _known_version(client: MlflowClient, model: str, digest: str) -> Any:
    version = _version(client, model, digest)
    if version is None:
        hint = "Was it registered with another MLflow server, or is its database gone?"
        raise NotFoundError("model version in MLflow", got=digest[:12], expected="a registered release", hint=hint)
    return version


def _aliases(client: MlflowClient, model: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(model).aliases)
    except MlflowException:
        return {}


def _tags(entry: Entry) -> dict[str, str]:
    """Lineage: from the run one finds the release, its data, its code and the champion it was compared with."""
    made, manifest = entry.candidate, entry.release.manifest
    return {
        "slipway.kind": "release",
        "slipway.release": entry.release.digest,
        "slipway.semver": manifest.semver,
        "slipway.status": entry.status,
        "slipway.training_set": made.training_set,
        "slipway.spec": made.spec_digest,
        "slipway.as_of": from_us(made.as_of_us).isoformat(),
        "slipway.views": ",".join(pin.view for pin in manifest.views),
        "slipway.change": str(manifest.training.get("change", "")),
        "slipway.compared_with": str(entry.metrics["champion_note"]),
        **{f"slipway.code.{name}": value for name, value in made.code.items()},
        "mlflow.note.content": entry.card,
    }


def _numbers(entry: Entry) -> dict[str, float]:
    found = {f"test_{name}": value for name, value in entry.metrics["test"].items()}
    found |= {f"compared_{name}": value for name, value in (entry.metrics["same_rows"] or {}).items()}
    found |= {f"compared_champion_{name}": value for name, value in (entry.metrics.get("champion") or {}).items()}
    objective = entry.metrics["objective"]
    for name, values in entry.metrics["slices"].items():
        found |= {
            f"slice_{name}_{value}_{objective}": measured[objective]
            for value, measured in values.items()
            if objective in measured
        }
    found |= {f"seconds_{name}": value for name, value in entry.candidate.seconds.items()}
    found |= {f"rows_{name}": float(part.rows) for name, part in entry.candidate.split.items()}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _params(entry: Entry) -> dict[str, str]:
    made, manifest = entry.candidate, entry.release.manifest
    return {
        "trainer": made.trainer,
        "calibration": str(made.calibration.get("kind")),
        "features": ",".join(feature.name for feature in manifest.features),
        "seed": str(manifest.training.get("seed")),
        "trials": str(len(made.trials)),
        **{f"model.{name}": str(value) for name, value in made.params.items()},
    }


def _dataset(entry: Entry) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    training = entry.training
    dataset = Dataset(
        name=f"{training.model} training set",
        digest=entry.candidate.training_set[:32],
        source_type="local",
        source=json.dumps({"uri": entry.training_path.as_uri()}),
        profile=json.dumps({"num_rows": training.rows, "labelled": training.labelled, "dropped": training.dropped}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _artifacts(folder: Path, entry: Entry, run_id: str) -> None:
    """Everything that is kept as files: card, picture, trials, gates, and the bundle as a model of the ONNX flavour."""
    made, manifest = entry.candidate, entry.release.manifest
    (folder / "model_card.md").write_text(entry.card)
    evaluation_plot(
        folder / "evaluation.png",
        title=f"{manifest.model} {manifest.semver}",
        task=manifest.task,
        event_us=entry.test_event_us,
        label=entry.test_label,
        score=entry.test_score,
        importance=made.importance,
        trials=made.trials,
    )
    (folder / "study.json").write_bytes(msgspec.json.format(msgspec.json.encode(made.trials)))
    (folder / "metrics.json").write_bytes(msgspec.json.format(msgspec.json.encode(entry.metrics)))
    (folder / "gates.json").write_bytes(msgspec.json.format(msgspec.json.encode(entry.verdicts)))
    (folder / "training_set.json").write_bytes(msgspec.json.format(msgspec.json.encode(entry.training)))
    release = folder / "release"
    shutil.copytree(entry.release.folder, release)
    (release / "MLmodel").write_text(_mlmodel(manifest.features, run_id))


def _mlmodel(features: list[Any], run_id: str) -> str:
    """The MLmodel file: signature and the ONNX flavour, so that `mlflow.onnx.load_model` reads the bundle."""
    import onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    single = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(single, (-1, len(features)), "features")]),
        outputs=Schema([TensorSpec(single, (-1,), "score")]),
    )
    model = Model(artifact_path="release", run_id=run_id, signature=signature)
    model.add_flavor("onnx", onnx_version=onnx.__version__, data="model.onnx")
    model.add_flavor("python_function", loader_module="mlflow.onnx", data="model.onnx")
    text: str = model.to_yaml()
    return text


def _upload(settings: Settings, client: MlflowClient, run_id: str, artifact_uri: str, folder: Path) -> None:
    """Into the server's artifact folder where it lies in this installation's home; else through the server."""
    own = settings.root / "mlflow"
    if artifact_uri.startswith(ARTIFACT_SCHEME) and (own / "mlflow.db").is_file():
        place = artifact_uri.removeprefix(ARTIFACT_SCHEME).lstrip("/")
        shutil.copytree(folder, own / "artifacts" / place, dirs_exist_ok=True)
    else:
        client.log_artifacts(run_id, str(folder))
