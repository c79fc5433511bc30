"""Whether a model may score rows of several requests in one call: it must give each the same bits as alone.

ONNX Runtime promises no such thing. Tree ensembles add the same trees in the same order whatever the number of rows;
kernels of matrix products may be others for one row than for many, and round differently. So each release is tried
when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_SEED = 7
MOST_ROWS = 32
"""Scored together; every size of batch up to it is tried."""


def scores_row_by_row(predict: Callable[[np.ndarray], np.ndarray], sample: np.ndarray) -> bool:
    """Whether `predict` gives rows around those of `sample` [rows, features] the same bits in batches of every size."""
    rng = np.random.default_rng(_SEED)
    spread = rng.normal(size=(MOST_ROWS, sample.shape[1]))
    rows = sample[np.arange(MOST_ROWS) % len(sample)]
    # Around the sample's values: every other row by 1, the others by as much as they are large.
    spread[::2] *= np.maximum(np.abs(rows[::2]), 10.0)
    probe = (rows + spread).astype(np.float32)
    try:
        alone = np.concatenate([predict(probe[row : row + 1]) for row in range(MOST_ROWS)])
        return all(predict(probe[:size]).tobytes() == alone[:size].tobytes() for size in range(2, MOST_ROWS + 1))
    except Exception:  # noqa: BLE001 - whatever a model has against these rows, it is not asked for them together
        return False
