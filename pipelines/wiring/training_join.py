"""The job that joins what was asked, what was true and what could be read then."""

from __future__ import annotations

import pyarrow as pa

from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.training import recipe, training_set
from pipelines.training.columns import column_name, microseconds
from pipelines.wiring import requests_and_labels
from pipelines.wiring.scoring import join_views
from pipelines.wiring.training_candidates import (
    spec_digest,
)


def make_training_set(settings: Settings, model: str, as_of_us: int) -> str:
    """Join what was asked, what was true and what could be read then; returns the training set's digest."""
    spec = load_model(settings.include_dir, model)
    requests = requests_and_labels.requests(settings, model, as_of_us)
    labels = requests_and_labels.labels(settings, model, as_of_us)
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


def _truth_last(table: pa.Table) -> pa.Table:
    """Columns in the order keys, inputs, features, truth."""
    middle = [name for name in table.column_names if name not in (*training_set.KEYS, *training_set.TRUTH)]
    return table.select([*training_set.KEYS, *middle, *training_set.TRUTH])
