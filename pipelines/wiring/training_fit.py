"""The job that tunes, fits and calibrates a candidate."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pipelines.adapters.trainers import trainer_named
from pipelines.contracts.clocks import wall_us
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.training import training_set
from pipelines.training.candidate import Candidate, Parts, identify
from pipelines.training.columns import features_of, inputs_of, microseconds
from pipelines.training.fitting import make
from pipelines.training.split import split
from pipelines.training.trainer import Rows
from pipelines.wiring.training_candidates import (
    candidates,
    code_digests,
    draft_of,
    labelled,
    spec_digest,
)

PARITY_ROWS = 2_000


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
    rows = labelled(table)
    draft = draft_of(settings, spec, {})
    inputs, features = inputs_of(rows, draft.manifest.inputs), features_of(rows, draft.manifest.views)
    draft.check_request_features(inputs, features)
    matrix = draft.matrix(inputs, features, rows.num_rows)
    label = rows.column("label").to_numpy()
    event_us = microseconds(rows.column("event_timestamp"))
    parts = split(
        event_us,
        microseconds(rows.column("label_timestamp")),
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


def _part(event_us: Any) -> Parts:
    return Parts(rows=int(event_us.size), from_us=int(event_us.min()), to_us=int(event_us.max()))
