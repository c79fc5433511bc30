"""What a model was asked and what came true: its spec's `requests` and `labels` over the datasets, as of a time."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.delta_lake import MICROS_UTC, connect
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError
from pipelines.features.expressions import evaluate
from pipelines.settings import Settings
from pipelines.spec.loading import load_model
from pipelines.wiring.datasets import bind


def requests(settings: Settings, model: str, as_of_us: int) -> pa.Table:
    """The model's requests up to `as_of_us`: `request_id`, `event_timestamp`, inputs by name; in order of time."""
    spec = load_model(settings.include_dir, model)
    rows = _transformed(settings, spec.requests.datasets, spec.requests.transform, as_of_us)
    return _ordered(rows, "event_timestamp", ["request_id", "event_timestamp", *spec.inputs], as_of_us, model)


def labels(settings: Settings, model: str, as_of_us: int) -> pa.Table:
    """The model's labels known by `as_of_us`: `request_id`, `label`, `label_timestamp` (known); in that order."""
    spec = load_model(settings.include_dir, model)
    rows = _transformed(settings, spec.labels.datasets, spec.labels.transform, as_of_us)
    return _ordered(rows, "label_timestamp", ["request_id", "label", "label_timestamp"], as_of_us, model)


def _transformed(settings: Settings, datasets: list[str], transform: str, as_of_us: int) -> pa.Table:
    with connect() as connection:
        for name in datasets:
            bind(settings, connection, name, as_of_us)
        return evaluate(connection, settings.include_dir, transform, datasets)


def _ordered(rows: pa.Table, time: str, columns: list[str], as_of_us: int, model: str) -> pa.Table:
    if missing := [name for name in columns if name not in rows.column_names]:
        raise ContractError(
            f"model {model}: transform lacks column {', '.join(missing)}", got=rows.column_names, expected=columns
        )
    stamped = rows.set_column(
        rows.column_names.index(time), time, rows.column(time).cast(pa.timestamp("us")).cast(MICROS_UTC)
    )
    known = stamped.filter(pc.less_equal(stamped.column(time), pa.scalar(from_us(as_of_us), MICROS_UTC)))
    return known.select(columns).sort_by([(time, "ascending"), ("request_id", "ascending")])
