"""Datatypes of the protocol: which values they hold, and the numpy columns made of them.

Values come in two forms: a list (JSON, text) or a numpy array of the datatype's own dtype (binary tensor data, gRPC).
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from serving.oip.errors import Malformed

Scalar = float | int | str | bool | None

NUMERIC: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""Datatypes of a fixed size, little endian as they are sent; BYTES is the only other one."""

_INT_RANGES = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) for name, dtype in NUMERIC.items() if dtype.kind in "iu"
}
FLOATS = frozenset({"FP16", "FP32", "FP64"})
DATATYPES = ("FP16", "FP32", "FP64", *_INT_RANGES, "BOOL", "BYTES")

_NONE = type(None)
_FLOAT = frozenset({float})
_NUMBERS = frozenset({float, int})
_OTHERS: dict[str, frozenset[type]] = {"BOOL": frozenset({bool}), "BYTES": frozenset({str})}


def compatible(sent: str, declared: str) -> bool:
    """Whether a tensor of datatype `sent` may stand for an input declared as `declared` (numbers widen to floats)."""
    if sent == declared:
        return True
    if declared in FLOATS:
        return sent in FLOATS or sent in _INT_RANGES
    return declared in _INT_RANGES and sent in _INT_RANGES


def column(
    name: str, sent: str, declared: str, data: list[Any] | np.ndarray, *, nullable: bool
) -> tuple[np.ndarray, list[Scalar]]:
    """The numpy column of one input (float64, int64/uint64, bool, or object for text), and its values for the log.

    Null, and NaN in an array, becomes NaN in numbers (an integer column with nulls is float64) and None in text and
    booleans; the log has None. Raises Malformed naming the first value that is not of both datatypes.
    """
    if isinstance(data, np.ndarray):
        return _of_array(name, declared, data, nullable)
    kinds = set(map(type, data))
    # The common case first. A sum of floats is finite only when each of them is.
    if kinds == _FLOAT and declared in FLOATS and sent in FLOATS and isfinite(sum(data)):
        return np.array(data, dtype=np.float64), data
    values = data
    if nulls := _NONE in kinds:
        if not nullable:
            raise _refusal(name, sent, declared, data, nullable)
        kinds.discard(_NONE)
        values = [value for value in data if value is not None]
    if not _hold(sent, kinds, values) or (sent != declared and not _hold(declared, kinds, values)):
        raise _refusal(name, sent, declared, data, nullable)
    if declared in FLOATS:
        made = np.array(data, dtype=np.float64)
        # MessagePack has no integers past 64 bits; such a number is logged as the float it became.
        beyond = int in kinds and not (min(values) >= -(1 << 63) and max(values) < 1 << 64)
        return made, (_with_nulls(made) if beyond else data)
    if declared in _INT_RANGES:
        if nulls:
            return np.array(data, dtype=np.float64), data
        return np.array(data, dtype=np.uint64 if declared == "UINT64" else np.int64), data
    if declared == "BOOL" and not nulls:
        return np.array(data, dtype=np.bool_), data
    made = np.empty(len(data), dtype=object)
    made[:] = data
    return made, data


def missing_column(declared: str, rows: int) -> np.ndarray:
    """The column of an optional input that was not sent."""
    if declared in ("BYTES", "BOOL"):
        return np.full(rows, None, dtype=object)
    return np.full(rows, np.nan)


def _hold(datatype: str, kinds: set[type], values: list[Any]) -> bool:
    """Whether all values, whose types are `kinds`, are of the datatype."""
    if datatype in FLOATS:
        try:
            return kinds <= _NUMBERS and all(map(isfinite, values))
        except OverflowError:  # an integer past the largest float
            return False
    if (bounds := _INT_RANGES.get(datatype)) is not None:
        return kinds <= {int} and (not values or (bounds[0] <= min(values) and max(values) <= bounds[1]))
    return kinds <= _OTHERS[datatype]


def _refusal(name: str, sent: str, declared: str, data: list[Any], nullable: bool) -> Malformed:
    """Names the first value that is not held."""
    for row, value in enumerate(data):
        if value is None and nullable:
            continue
        for datatype in (declared, sent):
            if value is None or not _hold(datatype, {type(value)}, [value]):
                null = " or null" if nullable else "; the input is required, so null is not allowed" * (value is None)
                return Malformed(f"input {name}, row {row}", got=f"{value!r:.80}", expected=f"{datatype}{null}")
    raise AssertionError("called for data that the datatypes hold")


def _of_array(name: str, declared: str, data: np.ndarray, nullable: bool) -> tuple[np.ndarray, list[Scalar]]:
    """`column` of an array that has the dtype of a datatype which may stand for `declared`. It is copied."""
    if declared in FLOATS:
        made = data.astype(np.float64)
        values = data.tolist()
        if data.dtype.kind != "f" or isfinite(sum(values)) or np.isfinite(made).all():
            return made, values
        allowed = ~np.isinf(made) if nullable else np.isfinite(made)
        if not allowed.all():
            row = int(np.argmin(allowed))
            null = " or NaN for null" if nullable else "; the input is required, so NaN is not allowed"
            raise Malformed(f"input {name}, row {row}", got=made[row], expected=f"a finite {declared}{null}")
        return made, _with_nulls(made)
    if declared in _INT_RANGES and data.dtype != NUMERIC[declared] and len(data):
        low, high = _INT_RANGES[declared]
        outside = [value < low or value > high for value in (int(data.min()), int(data.max()))]
        if any(outside):
            row = int(data.argmin() if outside[0] else data.argmax())
            raise Malformed(f"input {name}, row {row}", got=data[row], expected=declared)
    if declared in _INT_RANGES:
        return data.astype(np.uint64 if declared == "UINT64" else np.int64), data.tolist()
    return data.copy(), data.tolist()


def _with_nulls(values: np.ndarray) -> list[Scalar]:
    return [None if value != value else value for value in values.tolist()]
