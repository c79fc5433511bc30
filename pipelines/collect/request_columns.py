"""What is known of requests that have been assigned, as columns: one row a request, two entries where arms differ."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa

from pipelines.collect.row_order import codes
from pipelines.contracts.errors import ContractError
from pipelines.stats.nats import Ints

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Requests = dict[str, np.ndarray[Any, Any]]

FAR = np.int64(1) << 62
"""A position or a time that never comes."""
NONE, OK, ERROR, INVALID = 0, 1, 2, 3
CHAMPION, CHALLENGER, BOTH = 0, 1, 2
ARMS = ["champion", "challenger", "both"]

_FIELDS: dict[str, tuple[Any, Any]] = {
    # name: (dtype, value of a request just assigned)
    "deadline": (np.int64, 0),
    "due": (np.int64, 0),
    "kpi_due": (np.int64, 0),
    "wall": (np.int64, 0),
    "ts": (np.int64, 0),
    "pos": (np.int64, 0),
    "stage": (np.int64, 0),
    "arm": (np.int64, 0),
    "share": (np.float64, np.nan),
    "unit": (np.int64, 0),
    "warm": (np.bool_, False),
    "closed": (np.bool_, False),
    "label": (np.float64, np.nan),
    "labelled": (np.bool_, False),
    "settled": (np.bool_, False),
    "kpi_settled": (np.bool_, False),
}


def empty(size: int, slices: int, kpis: int = 1) -> Requests:
    """`size` requests of which nothing is known yet; `parts` has a column for each of `slices`, `kpi` of `kpis`."""
    fresh: Requests = {name: np.full(size, value, dtype=dtype) for name, (dtype, value) in _FIELDS.items()}
    fresh["parts"] = np.full((size, slices), -1, dtype=np.int64)
    fresh["kpi"] = np.full((size, kpis), np.nan)
    fresh["has_kpi"] = np.zeros((size, kpis), dtype=np.bool_)
    fresh["status"] = np.zeros((size, 2), dtype=np.int64)
    fresh["answered"] = np.full((size, 2), FAR, dtype=np.int64)
    fresh["score"] = np.full((size, 2), np.nan)
    fresh["latency"] = np.full((size, 2), np.nan)
    # What an arm took when the other one was scored beside it, as the other one's answer tells.
    fresh["beside"] = np.full((size, 2), np.nan)
    fresh["own"] = np.zeros((size, 2), dtype=np.bool_)
    fresh["doubled"] = np.zeros((size, 2), dtype=np.bool_)
    return fresh


class _Taken(Requests):
    """Some of the requests; a column is gathered when it is first asked for, for no bet needs them all."""

    def __init__(self, rows: Requests, keep: Any) -> None:
        super().__init__()
        self._rows, self._keep = rows, keep

    def __missing__(self, name: str) -> np.ndarray[Any, Any]:
        column: np.ndarray[Any, Any] = self._rows[name][self._keep]
        self[name] = column
        return column


def take(rows: Requests, keep: Any) -> Requests:
    """The requests that an index or a mask selects, by column name; to be read before `rows` changes."""
    if keep.dtype == np.bool_:
        number = int(np.count_nonzero(keep))
        if number == len(keep):
            return rows
        if number and keep[len(keep) - number :].all():
            # Only the first ones are left out: a slice copies nothing.
            return _Taken(rows, slice(len(keep) - number, None))
    return _Taken(rows, keep)


def in_stages(rows: Requests, stage: Ints) -> Requests:
    """The same requests in other stages."""
    moved = _Taken(rows, slice(None))
    moved["stage"] = stage
    return moved


def drawn(rows: Requests) -> Bools:
    """Whether the arm of each request was drawn, so that one may bet on it."""
    share = rows["share"]
    return cast("Bools", (rows["arm"] != BOTH) & (share > 0.0) & (share < 1.0))


def arms(table: pa.Table, known: list[str]) -> Ints:
    """Codes of the column `arm`. Raises ContractError for an arm that is not among the `known` ones."""
    arm = codes(table["arm"], known)
    if (arm < 0).any():
        wrong = table["arm"][int(np.argmin(arm))].as_py()
        raise ContractError("arm", got=repr(wrong), expected="one of " + ", ".join(known))
    return arm
