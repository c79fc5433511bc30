"""The jobs that judge a release's offline gates and enter it into MLflow and the control database."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import ReleaseRow, control_db
from pipelines.settings import Settings
from pipelines.training import gates as offline
from pipelines.training import training_set
from pipelines.training.columns import inputs_of, microseconds
from pipelines.training.gates import GateVerdict
from pipelines.wiring.scoring import load_release
from pipelines.wiring.training_candidates import (
    candidate_of,
    candidates,
    card_of,
    labelled,
    spec_of,
)


def offline_gates(settings: Settings, release: str) -> list[GateVerdict]:
    """Judge the offline gates of a release on its test metrics; kept with its candidate."""
    candidate = candidate_of(settings, release)
    store = candidates(settings)
    spec = spec_of(store.load(candidate))
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
    candidate = candidate_of(settings, release)
    store = candidates(settings)
    made, metrics = store.load(candidate), store.metrics(candidate)
    verdicts = store.gates(candidate)
    if verdicts is None:
        verdicts = offline_gates(settings, release)
    spec = spec_of(made)
    loaded = load_release(settings, release)
    training = training_set.manifest_of(settings.training_sets, made.training_set)
    status = "refused" if offline.refused(verdicts) else "registered"
    card = card_of(loaded.manifest, spec, made, metrics, training, [verdict.sentence for verdict in verdicts])
    evaluation = store.arrays(candidate, "evaluation")
    table, _ = training_set.read(settings.training_sets, made.training_set)
    rows = labelled(table).take(pa.array(evaluation["position"]))
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
