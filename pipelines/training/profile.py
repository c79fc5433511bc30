"""The reference profile of a release: how its inputs, features, scores and labels were spread when it was made.

Drift is measured against it where the champion has no matured days of its own yet. Numbers: counts in ten bins of equal
rows (`edges` has the nine inner cuts, so every later value falls into a bin) and the missing rows; text: counts of the
most frequent values, the rest under `other`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from pipelines.contracts.release import Columns
from pipelines.training.metrics import Vector
from pipelines.training.trainer import Matrix

SCHEMA = "slipway-profile/1"
BINS = 10
MOST_VALUES = 50


def profile(
    names: list[str], matrix: Matrix, inputs: Columns, score: Vector, label: Vector, *, from_us: int, to_us: int
) -> dict[str, Any]:
    """The profile of these rows as one JSON value. `label` has NaN where censored."""
    texts = {name: values for name, values in inputs.items() if values.dtype == object}
    return {
        "schema": SCHEMA,
        "rows": int(matrix.shape[0]),
        "from_us": from_us,
        "to_us": to_us,
        "features": {name: numeric(matrix[:, index].astype(np.float64)) for index, name in enumerate(names)},
        "inputs": {name: categorical(values) for name, values in texts.items()},
        "score": numeric(score),
        "label": numeric(label),
    }


def numeric(values: Vector) -> dict[str, Any]:
    """Counts in bins of equal rows, missing rows, mean and standard deviation of the rest."""
    known = values[np.isfinite(values)]
    if not known.size:
        return {"kind": "numeric", "edges": [], "counts": [], "missing": int(values.size), "mean": None, "sd": None}
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = np.bincount(np.searchsorted(edges, known, side="left"), minlength=edges.size + 1)
    return {
        "kind": "numeric",
        "edges": [float(edge) for edge in edges],
        "counts": [int(count) for count in counts],
        "missing": int(values.size - known.size),
        "mean": float(known.mean()),
        "sd": float(known.std()),
    }


def categorical(values: np.ndarray) -> dict[str, Any]:
    """Counts of the most frequent values (ties by name), of all others, and of missing rows."""
    counted = Counter(value for value in values.tolist() if value is not None)
    ranked = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
    kept = dict(sorted(ranked[:MOST_VALUES]))
    known = sum(counted.values())
    return {
        "kind": "categorical",
        "counts": kept,
        "other": known - sum(kept.values()),
        "missing": int(values.size) - known,
    }
