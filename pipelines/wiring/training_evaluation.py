"""The job that measures a candidate beside the champion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import connect
from pipelines.contracts.errors import DataError
from pipelines.contracts.release import Release
from pipelines.features.expressions import evaluate as evaluate_transform
from pipelines.settings import Settings
from pipelines.spec.model import ModelSpec
from pipelines.training import training_set
from pipelines.training.columns import inputs_of, microseconds, slices_of
from pipelines.training.metrics import OBJECTIVE, Vector, measure, measure_slices
from pipelines.wiring import datasets
from pipelines.wiring.planning_rates import planning_rates
from pipelines.wiring.scoring import load_release, score_of, score_table
from pipelines.wiring.training_candidates import (
    candidates,
    draft_of,
    labelled,
    spec_of,
)

COMPARED_ROWS = 500


def evaluate(settings: Settings, candidate: str) -> dict[str, Any]:
    """Measure the candidate's recipe on the test part, in slices, beside the champion on the same rows."""
    store = candidates(settings)
    made = store.load(candidate)
    spec = spec_of(made)
    table, manifest = training_set.read(settings.training_sets, made.training_set)
    evaluation = store.arrays(candidate, "evaluation")
    rows = labelled(table).take(pa.array(evaluation["position"]))
    label = rows.column("label").to_numpy()
    draft = draft_of(settings, spec, made.calibration)
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
        **{name: value for name, value in compared.items() if name != "champion_score"},
        "planning": planning_rates(spec, _label_share(table, manifest), rows, scored, compared.get("champion_score")),
    }
    store.put_metrics(candidate, metrics)
    return metrics


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
        "champion_score": _at(fresh, score_of(release, theirs)),
        "champion": measure(spec.task, label[fresh], score_of(release, theirs)),
        "same_rows": measure(spec.task, label[fresh], scored[fresh]),
        "champion_note": f"{name} over {int(fresh.sum())} rows that neither was fitted on",
    }


def _label_share(table: pa.Table, manifest: training_set.Manifest) -> float:
    """Labelled requests among those whose label should be known by now."""
    known: int = labelled(table).num_rows
    return known / max(int(table.num_rows) + manifest.dropped.get("unlabelled", 0), 1)


def _at(places: np.ndarray[Any, np.dtype[np.bool_]], values: Vector) -> Vector:
    """The values at their places among all rows, NaN elsewhere."""
    spread = np.full(len(places), np.nan)
    spread[places] = values
    return spread


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
