"""The time-ordered split of labelled rows into fit, validation and test, with a gap for late labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import DataError

Mask = npt.NDArray[np.bool_]


class Split(NamedTuple):
    """Three disjoint row masks, in the order of time."""

    fit: Mask
    validation: Mask
    test: Mask


def split(
    event_us: npt.NDArray[np.int64],
    label_us: npt.NDArray[np.int64],
    *,
    validation_us: int,
    test_us: int,
    gap_us: int,
) -> Split:
    """Cut rows by request time: ... fit | gap | validation | gap | test, the test ending at the last request.

    A row also leaves a part when its label became known only after the next part began: nobody could have learnt from
    it by then. `event_us` and `label_us` are microseconds, one a row. Raises DataError when a part stays empty.
    """
    if event_us.size == 0:
        raise DataError(
            "time-ordered split", got="no labelled row", expected="rows in each of fit, validation and test"
        )
    end = int(event_us.max())
    test_from = end - test_us
    validation_to = test_from - gap_us
    validation_from = validation_to - validation_us
    fit_to = validation_from - gap_us
    made = Split(
        fit=(event_us <= fit_to) & (label_us <= validation_from),
        validation=(event_us > validation_from) & (event_us <= validation_to) & (label_us <= test_from),
        test=event_us > test_from,
    )
    counts = {name: int(mask.sum()) for name, mask in made._asdict().items()}
    if not all(counts.values()):
        raise DataError(
            "time-ordered split",
            got=f"{counts} rows from {from_us(int(event_us.min())).date()} to {from_us(end).date()}",
            expected="rows in each part",
            hint="Shorten training.split, or wait for more labels.",
        )
    return made
