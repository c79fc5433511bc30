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
"""Scored together, unless the spec gathers more."""


def scores_row_by_row(predict: Callable[[np.ndarray], np.ndarray], sample: np.ndarray, most: int = MOST_ROWS) -> bool:
    """Whether `predict` gives rows around those of `sample` [rows, features] the same bits alone and in batches.

    Every size up to 32 is tried, then powers of two, and `most`.
    """
    rng = np.random.default_rng(_SEED)
    spread = rng.normal(size=(most, sample.shape[1]))
    rows = sample[np.arange(most) % len(sample)]
    # Around the sample's values: every other row by 1, the others by as much as they are large.
    spread[::2] *= np.maximum(np.abs(rows[::2]), 10.0)
    probe = (rows + spread).astype(np.float32)
    sizes = {*range(2, min(most, MOST_ROWS) + 1), *(size for size in (64, 128, 256, 512) if size < most), most}
    try:
        alone = np.concatenate([predict(probe[row : row + 1]) for row in range(most)])
        return all(predict(probe[:size]).tobytes() == alone[:size].tobytes() for size in sorted(sizes))
    except Exception:  # noqa: BLE001 - whatever a model has against these rows, it is not asked for them together
        return False
