"""What is monitored: columns of numbers (missing is NaN) or of categories (missing is None), in two windows."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Category = str | bool | None


class Window(msgspec.Struct, frozen=True):
    """Half-open event time [start, end) in microseconds."""

    start_us: int
    end_us: int


class Windows(msgspec.Struct, frozen=True):
    """The current days and the reference days just before them."""

    reference: Window
    current: Window


def windows(as_of_us: int, reference_us: int, current_us: int, maturity_us: int = 0) -> Windows:
    """The current window ends at `as_of`, or `maturity` before it where labels are needed; the reference ends there."""
    end = as_of_us - maturity_us
    start = end - current_us
    return Windows(Window(start - reference_us, start), Window(start, end))


class Column(msgspec.Struct, frozen=True):
    """One column in both windows: NumPy arrays of numbers, or lists of categories."""

    name: str
    reference: Numbers | Sequence[Category]
    current: Numbers | Sequence[Category]

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers; else they are categories."""
        return isinstance(self.reference, np.ndarray)
