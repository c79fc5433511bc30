"""Datatypes of the protocol: which JSON values they hold, and the numpy columns made of them."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

from serving.oip.errors import Malformed

_INT_RANGES = {f"INT{bits}": (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in (8, 16, 32, 64)} | {
    f"UINT{bits}": (0, (1 << bits) - 1) for bits in (8, 16, 32, 64)
}
_FLOATS = ("FP16", "FP32", "FP64")
DATATYPES = (*_FLOATS, *_INT_RANGES, "BOOL", "BYTES")

# The largest integer that is a finite float64.
_LARGEST = int(np.finfo(np.float64).max)


def _float(value: object) -> bool:
    return (type(value) is float and isfinite(value)) or (type(value) is int and -_LARGEST <= value <= _LARGEST)


def _int_within(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


_HOLDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(_FLOATS, _float),
    **{name: _int_within(*bounds) for name, bounds in _INT_RANGES.items()},
    "BOOL": lambda value: type(value) is bool,
    "BYTES": lambda value: type(value) is str,
}


def compatible(sent: str, declared: str) -> bool:
    """Whether a tensor of datatype `sent` may stand for an input declared as `declared` (numbers widen to floats)."""
    if sent == declared:
        return True
    if declared in _FLOATS:
        return sent in _FLOATS or sent in _INT_RANGES
    return declared in _INT_RANGES and sent in _INT_RANGES


def column(name: str, declared: str, data: list[Any], *, nullable: bool) -> np.ndarray:
    """The numpy column of one input: float64, int64/uint64, bool, or object (text).

    Null becomes NaN in numbers (an integer column with nulls is float64) and None in text and booleans.
    Raises Malformed naming the first value that is not of the datatype.
    """
    holds = _HOLDS[declared]
    nulls = False
    for row, value in enumerate(data):
        if value is None and nullable:
            nulls = True
        elif not holds(value):
            null = " or null" if nullable else "; the input is required, so null is not allowed" * (value is None)
            raise Malformed(f"input {name}, row {row}", got=f"{value!r:.80}", expected=f"{declared}{null}")
    if declared in _FLOATS:
        return np.array(data, dtype=np.float64)
    if declared in _INT_RANGES:
        if nulls:
            return np.array([np.nan if value is None else value for value in data], dtype=np.float64)
        return np.array(data, dtype=np.uint64 if declared == "UINT64" else np.int64)
    if declared == "BOOL" and not nulls:
        return np.array(data, dtype=np.bool_)
    made = np.empty(len(data), dtype=object)
    made[:] = data
    return made


def missing_column(declared: str, rows: int) -> np.ndarray:
    """The column of an optional input that was not sent."""
    if declared in ("BYTES", "BOOL"):
        return np.full(rows, None, dtype=object)
    return np.full(rows, np.nan)
