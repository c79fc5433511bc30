"""Jobs that make a release: training set, fit, evaluation, export, offline gates, registration.

Each takes and returns references, may be repeated, and finds its own finished work again.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import ReleaseRow, control_db
from pipelines.adapters.delta_lake import connect
from pipelines.adapters.onnx_runtime import OnnxModel
from pipelines.adapters.trainers import trainer_named
from pipelines.contracts.canonical import digest, file_digest
from pipelines.contracts.clocks import wall_us
from pipelines.contracts.errors import ContractError, DataError
from pipelines.contracts.release import Manifest, Release
from pipelines.features.expressions import evaluate as evaluate_transform
from pipelines.registry import bundle
from pipelines.registry.model_card import model_card
from pipelines.registry.versions import next_version
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_model
from pipelines.spec.model import ModelSpec
from pipelines.training import gates as offline
from pipelines.training import recipe, training_set
from pipelines.training.candidate import Candidate, Candidates, Parts, identify
from pipelines.training.columns import column_name, features_of, inputs_of, microseconds, slices_of
from pipelines.training.draft import Draft
from pipelines.training.fitting import make
from pipelines.training.gates import GateVerdict
from pipelines.training.metrics import OBJECTIVE, Vector, measure, measure_slices
from pipelines.training.profile import profile
from pipelines.training.split import split
from pipelines.training.trainer import Matrix, Rows
from pipelines.wiring import datasets
from pipelines.wiring.backtest import backtest
from pipelines.wiring.scoring import join_views, load_release, score, score_of, score_table

__all__ = [
    "Trained",
    "backtest",
    "candidates",
    "evaluate",
    "export",
    "fit",
    "make_training_set",
    "offline_gates",
    "register",
    "train",
]

_ADAPTERS = ("lightgbm_trainer.py", "sklearn_trainer.py", "onnx_export.py")
PARITY_ROWS = 2_000
PARITY = {"binary": 1e-5, "regression": 1e-3}
COMPARED_ROWS = 500
PROFILE_DAYS_US = 30 * 86_400_000_000


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What `train` made. `gates` are the offline gates' verdicts; `refused` says that one of them failed."""

    model: str
    release: str
    semver: str
    mlflow_run: str
    training_set: str
    metrics: dict[str, Any]
    gates: list[GateVerdict]
    refused: bool
    seconds: dict[str, float]


def train(settings: Settings, model: str, as_of_us: int) -> Trained:
    """All jobs below, in order: from what was known at `as_of_us` to a registered (or refused) release."""
    seconds: dict[str, float] = {}

    def timed(name: str, job: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        result = job(settings, *arguments)
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    made = timed("make_training_set", make_training_set, model, as_of_us)
    candidate = timed("fit", fit, model, made, as_of_us)
    timed("evaluate", evaluate, candidate)
    release = timed("export", export, candidate)
    verdicts = timed("offline_gates", offline_gates, release)
    row = timed("register", register, release)
    return Trained(
        model=model,
        release=release,
        semver=row.semver,
        mlflow_run=row.mlflow_run,
        training_set=made,
        metrics=row.metrics,
        gates=verdicts,
        refused=row.status == "refused",
        seconds=seconds,
    )


def make_training_set(settings: Settings, model: str, as_of_us: int) -> str:
    """Join what was asked, what was true and what could be read then; returns the training set's digest."""
    spec = load_model(settings.include_dir, model)
    requests = datasets.requests(settings, model, as_of_us)
    labels = datasets.labels(settings, model, as_of_us)
    window = spec.training.window
    start = None if isinstance(window, str) else as_of_us - window.us
    joined = training_set.join_labels(
        requests,
        labels,
        as_of_us=as_of_us,
        from_us_=start,
        maturity_us=spec.labels.maturity.us,
        unlabelled=spec.labels.unlabelled,
    )
    pins = recipe.view_pins(spec, settings.include_dir)
    table = joined.table
    if pins:
        features = join_views(settings, table, pins)
        for pin in pins:
            for name in pin.features:
                table = table.append_column(column_name(pin.view, name), features.column(name))
    table = _truth_last(table)
    censored = table.column("label").null_count
    events = microseconds(table.column("event_timestamp"))
    manifest = training_set.Manifest(
        model=model,
        spec_digest=spec_digest(spec),
        as_of_us=as_of_us,
        from_us=start,
        views=[{"view": pin.view, "features": pin.features} for pin in pins],
        rows=table.num_rows,
        labelled=table.num_rows - censored,
        censored=censored,
        dropped=joined.dropped,
        first_event_us=int(events[0]),
        last_event_us=int(events[-1]),
        last_label_us=int(microseconds(table.column("label_timestamp")).max()),
        data="",
    )
    return training_set.write(settings.training_sets, table, manifest)


def fit(settings: Settings, model: str, training: str, as_of_us: int) -> str:
    """Tune, fit and calibrate on a training set; returns the candidate's id."""
    spec = load_model(settings.include_dir, model)
    store = candidates(settings)
    code = code_digests(settings, spec)
    name = identify(spec_digest(spec), training, code)
    if store.exists(name):
        return name
    started = wall_us()
    table, _ = training_set.read(settings.training_sets, training)
    labelled = table.filter(table.column("label").is_valid())
    draft = _draft(settings, spec, {})
    inputs, features = inputs_of(labelled, draft.manifest.inputs), features_of(labelled, draft.manifest.views)
    draft.check_request_features(inputs, features)
    matrix = draft.matrix(inputs, features, labelled.num_rows)
    label = labelled.column("label").to_numpy()
    event_us = microseconds(labelled.column("event_timestamp"))
    parts = split(
        event_us,
        microseconds(labelled.column("label_timestamp")),
        validation_us=spec.training.split.validation.us,
        test_us=spec.training.split.test.us,
        gap_us=spec.training.split.gap.us,
    )
    trainer = trainer_named(spec.training.trainer, spec.task)
    made = make(
        trainer,
        spec.task,
        Rows(matrix, label),
        parts,
        fixed=dict(spec.training.params),
        trials=spec.training.trials,
        seed=spec.training.seed,
        calibration=spec.training.calibration,
    )
    start = time.perf_counter()
    onnx = made.final.to_onnx()
    rng = np.random.default_rng(spec.training.seed)
    sample = np.sort(rng.choice(label.size, min(PARITY_ROWS, label.size), replace=False))
    names = [feature.name for feature in draft.manifest.features]
    candidate = Candidate(
        id=name,
        model=model,
        spec=spec.model_dump(mode="json"),
        spec_digest=spec_digest(spec),
        training_set=training,
        as_of_us=as_of_us,
        trainer=spec.training.trainer,
        params=made.final.params,
        objective=made.study.objective,
        trials=[trial._asdict() for trial in made.study.trials],
        calibration=made.calibration,
        importance={name: float(value) for name, value in zip(names, made.final.importance(), strict=True)},
        split={part: _part(event_us[mask]) for part, mask in parts._asdict().items()},
        seconds={**made.seconds, "onnx": round(time.perf_counter() - start, 3)},
        code=code,
        started_us=started,
    )
    return store.save(
        candidate,
        onnx,
        {"position": np.flatnonzero(parts.test), "raw": made.test_raw},
        {"position": sample, "raw": made.final.predict(matrix[sample])},
    )


def evaluate(settings: Settings, candidate: str) -> dict[str, Any]:
    """Measure the candidate's recipe on the test part, in slices, beside the champion on the same rows."""
    store = candidates(settings)
    made = store.load(candidate)
    spec = ModelSpec.model_validate_json(msgspec.json.encode(made.spec))
    table, _ = training_set.read(settings.training_sets, made.training_set)
    evaluation = store.arrays(candidate, "evaluation")
    rows = table.filter(table.column("label").is_valid()).take(pa.array(evaluation["position"]))
    label = rows.column("label").to_numpy()
    draft = _draft(settings, spec, made.calibration)
    inputs = inputs_of(rows, draft.manifest.inputs)
    scored = np.asarray(draft.outputs(evaluation["raw"], inputs)[spec.output.score], dtype=np.float64)
    compared = _compare(settings, spec, rows, label, scored)
    metrics: dict[str, Any] = {
        "objective": OBJECTIVE[spec.task],
        "test": measure(spec.task, label, scored),
        "test_rows": int(label.size),
        "test_from_us": made.split["test"].from_us,
        "test_to_us": made.split["test"].to_us,
        "slices": measure_slices(spec.task, label, scored, slices_of(inputs, spec.slices)),
        **compared,
    }
    store.put_metrics(candidate, metrics)
    return metrics


def export(settings: Settings, candidate: str) -> str:
    """Write the release bundle, proven on real rows, and return its digest.

    The whole chain (request features, ONNX model, post-processing) loaded from the bundle must give the scores of the
    fitting library within `PARITY`. Raises ContractError otherwise, and nothing is installed.
    """
    store = candidates(settings)
    if (done := store.release(candidate)) is not None and (settings.releases / done).is_dir():
        return done
    made, metrics = store.load(candidate), store.metrics(candidate)
    spec = ModelSpec.model_validate_json(msgspec.json.encode(made.spec))
    if (now := code_digests(settings, spec)) != made.code:
        raise DataError(
            f"sources of candidate {candidate}",
            got=now,
            expected=made.code,
            hint="They changed after the fit: fit again.",
        )
    table, training = training_set.read(settings.training_sets, made.training_set)
    draft = _draft(settings, spec, made.calibration)
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
    files["model_card.md"] = _card(manifest, spec, made, metrics, training, []).encode()
    with bundle.staged(settings.releases, manifest, files) as staged:
        _prove(Release(staged.folder, staged.digest), store.arrays(candidate, "parity"), table, draft)
        release = bundle.install(settings.releases, staged)
    store.put_release(candidate, release)
    return release


def offline_gates(settings: Settings, release: str) -> list[GateVerdict]:
    """Judge the offline gates of a release on its test metrics; kept with its candidate."""
    candidate = _candidate_of(settings, release)
    store = candidates(settings)
    spec = ModelSpec.model_validate_json(msgspec.json.encode(store.load(candidate).spec))
    metrics = store.metrics(candidate)
    comparison = offline.Comparison(metrics["same_rows"], metrics["champion"], metrics["champion_note"])
    verdicts = offline.judge(spec.offline_gates, metrics["test"], comparison)
    store.put_gates(candidate, verdicts)
    return verdicts


def register(settings: Settings, release: str) -> ReleaseRow:
    """Write the release into MLflow and the control database: status `registered`, or `refused` by an offline gate."""
    from pipelines.adapters import mlflow_registry

    db = control_db(settings)
    known = {row.digest: row for row in db.releases(load_release(settings, release).manifest.model)}
    if release in known:
        return known[release]
    candidate = _candidate_of(settings, release)
    store = candidates(settings)
    made, metrics = store.load(candidate), store.metrics(candidate)
    verdicts = store.gates(candidate)
    if verdicts is None:
        verdicts = offline_gates(settings, release)
    spec = ModelSpec.model_validate_json(msgspec.json.encode(made.spec))
    loaded = load_release(settings, release)
    training = training_set.manifest_of(settings.training_sets, made.training_set)
    status = "refused" if offline.refused(verdicts) else "registered"
    card = _card(loaded.manifest, spec, made, metrics, training, [verdict.sentence for verdict in verdicts])
    evaluation = store.arrays(candidate, "evaluation")
    table, _ = training_set.read(settings.training_sets, made.training_set)
    rows = table.filter(table.column("label").is_valid()).take(pa.array(evaluation["position"]))
    inputs = inputs_of(rows, loaded.manifest.inputs)
    scored = np.asarray(loaded.outputs(evaluation["raw"], inputs)[spec.output.score], dtype=np.float64)
    run = mlflow_registry.log_release(
        settings,
        mlflow_registry.Entry(
            release=loaded,
            candidate=made,
            metrics=metrics,
            verdicts=verdicts,
            status=status,
            card=card,
            description=spec.description,
            training=training,
            training_path=settings.training_sets / made.training_set / "data.parquet",
            test_event_us=microseconds(rows.column("event_timestamp")),
            test_label=rows.column("label").to_numpy(),
            test_score=scored,
        ),
    )
    row = ReleaseRow(
        model=spec.name,
        digest=release,
        semver=loaded.manifest.semver,
        status=status,
        mlflow_run=run,
        metrics=metrics["test"],
        training_set=made.training_set,
        spec_digest=made.spec_digest,
        created_us=made.as_of_us,
    )
    db.put_release(row)
    return row


def candidates(settings: Settings) -> Candidates:
    """The installation's candidates."""
    return Candidates(settings.root / "candidates")


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


def _draft(settings: Settings, spec: ModelSpec, calibration: dict[str, Any]) -> Draft:
    include = settings.include_dir
    return Draft(
        recipe.draft_manifest(spec, include, calibration),
        recipe.request_features_source(spec, include),
        recipe.postprocess_source(spec, include, calibration),
    )


def _matrix(release: Release, table: pa.Table) -> Matrix:
    inputs = inputs_of(table, release.manifest.inputs)
    return release.matrix(inputs, features_of(table, release.manifest.views), table.num_rows)


def _part(event_us: Any) -> Parts:
    return Parts(rows=int(event_us.size), from_us=int(event_us.min()), to_us=int(event_us.max()))


def _truth_last(table: pa.Table) -> pa.Table:
    """Columns in the order keys, inputs, features, truth."""
    middle = [name for name in table.column_names if name not in (*training_set.KEYS, *training_set.TRUTH)]
    return table.select([*training_set.KEYS, *middle, *training_set.TRUTH])


def _compare(settings: Settings, spec: ModelSpec, rows: pa.Table, label: Vector, scored: Vector) -> dict[str, Any]:
    """The champion and the candidate on the same rows: those of the test part that the champion was not fitted on.

    `champion` and `same_rows` hold the two sides' metrics, None where there is nothing to compare; `champion_note` says
    who was compared over how many rows, or why nobody.
    """
    nothing: dict[str, Any] = {"champion": None, "same_rows": None}
    champion = control_db(settings).champion(spec.name)
    if champion is None:
        return {**nothing, "champion_note": "there is no champion yet"}
    release = load_release(settings, champion)
    name = f"champion {release.manifest.semver}"
    seen_us = int(release.manifest.training.get("last_label_us", 0))
    fresh = microseconds(rows.column("event_timestamp")) > seen_us
    if int(fresh.sum()) < COMPARED_ROWS:
        note = f"the {name} was fitted on all but {int(fresh.sum())} of these rows; at least {COMPARED_ROWS} are needed"
        return {**nothing, "champion_note": note}
    unseen = rows.filter(pa.array(fresh))
    try:
        theirs = score_table(settings, release, _with_inputs(settings, spec, release, unseen))
    except DataError as error:
        return {**nothing, "champion_note": f"the {name} cannot run on these rows: {error}"}
    return {
        "champion": measure(spec.task, label[fresh], score_of(release, theirs)),
        "same_rows": measure(spec.task, label[fresh], scored[fresh]),
        "champion_note": f"{name} over {int(fresh.sum())} rows that neither was fitted on",
    }


def _with_inputs(settings: Settings, spec: ModelSpec, release: Release, rows: pa.Table) -> pa.Table:
    """The rows with the inputs that this release takes and the spec no longer lists, from the same transform."""
    missing = [field.name for field in release.manifest.inputs if field.name not in rows.column_names]
    if not missing:
        return rows
    last = int(microseconds(rows.column("event_timestamp")).max())
    with connect() as connection:
        for name in spec.requests.datasets:
            datasets.bind(settings, connection, name, last)
        asked = evaluate_transform(connection, settings.include_dir, spec.requests.transform, spec.requests.datasets)
    if not set(missing) <= set(asked.column_names):
        return rows
    place = {name: index for index, name in enumerate(asked.column("request_id").to_pylist())}
    taken = asked.select(missing).take(pa.array([place[name] for name in rows.column("request_id").to_pylist()]))
    for name in missing:
        rows = rows.append_column(name, taken.column(name))
    return rows


def _source_files(settings: Settings, spec: ModelSpec, calibration: dict[str, Any]) -> dict[str, bytes]:
    include = settings.include_dir
    found = {
        "request_features.py": recipe.request_features_source(spec, include),
        "postprocess.py": recipe.postprocess_source(spec, include, calibration),
    }
    return {name: path.read_bytes() for name, path in found.items() if path is not None}


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
    rows = table.filter(table.column("label").is_valid()).take(pa.array(parity["position"]))
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


def _card(
    manifest: Manifest,
    spec: ModelSpec,
    made: Candidate,
    metrics: dict[str, Any],
    training: training_set.Manifest,
    sentences: list[str],
) -> str:
    return model_card(
        manifest,
        description=spec.description,
        owner=spec.owner,
        metrics=metrics,
        importance=made.importance,
        gates=sentences,
        training=msgspec.to_builtins(training),
    )


def _candidate_of(settings: Settings, release: str) -> str:
    return str(load_release(settings, release).manifest.training["candidate"])
