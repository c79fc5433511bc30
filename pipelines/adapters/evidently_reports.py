"""Evidently's drift report of two windows, for people to look at. What is decided comes from `pipelines.monitoring`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.monitoring.columns import Category, Column, Numbers

MOST_ROWS = 5_000
"""Rows a window in the report; more make the page heavy and show nothing else."""


def write(columns: Sequence[Column], path: Path) -> Path:
    """Write the report of all columns as one HTML page and return its path. A column without values is left out."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shown = [column for column in columns if _has_values(column.reference) and _has_values(column.current)]
    definition = DataDefinition(
        numerical_columns=[column.name for column in shown if column.is_numeric],
        categorical_columns=[column.name for column in shown if not column.is_numeric],
    )
    frames = [
        pd.DataFrame({column.name: _thinned(values) for column, values in side})
        for side in ([(c, c.current) for c in shown], [(c, c.reference) for c in shown])
    ]
    current, reference = (Dataset.from_pandas(frame, data_definition=definition) for frame in frames)
    result = Report([DataDriftPreset()]).run(current, reference)
    path.parent.mkdir(parents=True, exist_ok=True)
    result.save_html(str(path))
    return path


def _thinned(values: Numbers | Sequence[Category]) -> Numbers | list[str]:
    """Every k-th value, so that the whole window is shown; missing categories get a name."""
    step = max(1, len(values) // MOST_ROWS)
    if isinstance(values, np.ndarray):
        return values[::step]
    return ["(missing)" if value is None else str(value) for value in values[::step]]


def _has_values(values: Numbers | Sequence[Category]) -> bool:
    if isinstance(values, np.ndarray):
        return bool((~np.isnan(values)).any())
    return any(value is not None for value in values)
