"""Requests of which something can still come: a table in memory that grows at its end and forgets lazily.

Rows are kept in the order of their assignment. Growing doubles the buffers, forgetting waits until half of the rows are
done: a batch costs what it brings, not what is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.stats.nats import Ints

Columns = dict[str, np.ndarray[Any, Any]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

_LEAST = 4096


class OpenRequests:
    """Columns of open requests; `rows` are views of the filled part and may be written to."""

    def __init__(self, empty: Callable[[int], Columns]) -> None:
        self._empty = empty
        self._held = empty(0)
        self._ids = np.zeros(0, dtype=np.int64)
        self._codes: dict[str, int] = {}
        self._next_code = 0
        self._ascending = True
        self._size = 0
        self.rows: Columns = self._held

    def __len__(self) -> int:
        return self._size

    def append(self, ids: pa.Array, fresh: Columns) -> None:
        """Adds requests at the end; `ids` are int64 or string, none of them open."""
        codes = self._encode(ids, new=True)
        last = self._ids[self._size - 1] if self._size else np.int64(-(1 << 62))
        increasing = bool(np.all(codes[1:] > codes[:-1]))
        self._ascending = self._ascending and increasing and (not len(codes) or bool(codes[0] > last))
        size = self._size + len(codes)
        if size > len(self._ids):
            room = max(size, 2 * len(self._ids))
            grown, ids_grown = self._empty(room), np.zeros(room, dtype=np.int64)
            ids_grown[: self._size] = self._ids[: self._size]
            for name, values in self._held.items():
                grown[name][: self._size] = values[: self._size]
            self._held, self._ids = grown, ids_grown
        for name, values in fresh.items():
            self._held[name][self._size : size] = values
        self._ids[self._size : size] = codes
        self._size = size
        self._view()

    def find(self, ids: pa.Array) -> Ints:
        """(n,) row of each id, -1 when it is not open."""
        codes, known = self._encode(ids, new=False), self._ids[: self._size]
        if not self._size:
            return np.full(len(codes), -1, dtype=np.int64)
        if self._ascending and int(known[-1]) - int(known[0]) == self._size - 1:
            inside = (codes >= known[0]) & (codes <= known[-1])
            return np.where(inside, codes - known[0], -1)
        order = None if self._ascending else np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known, codes, sorter=order), self._size - 1)
        row = place if order is None else order[place]
        return np.where(known[row] == codes, row, -1).astype(np.int64)

    def forget(self, done: Bools) -> None:
        """Drops the rows marked in `done`, once they are half of all."""
        if self._size < _LEAST or 2 * int(done.sum()) < self._size:
            return
        keep = ~done
        kept_ids = self._ids[: self._size][keep]
        kept = {name: values[: self._size][keep] for name, values in self._held.items()}
        if self._codes:
            alive = set(kept_ids.tolist())
            self._codes = {text: code for text, code in self._codes.items() if code in alive}
        self._held, self._ids, self._size = kept, kept_ids, len(kept_ids)
        if not self._size:
            self._ascending = True
        self._view()

    def _view(self) -> None:
        self.rows = {name: values[: self._size] for name, values in self._held.items()}

    def _encode(self, ids: pa.Array, *, new: bool) -> Ints:
        """Integers as they are; texts as numbers in order of appearance, -1 for one never seen."""
        if pa.types.is_integer(ids.type):
            numbers: Ints = pc.fill_null(ids.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
            return numbers
        texts = ids.cast(pa.string()).to_pylist()
        if new:
            for text in texts:
                if text not in self._codes:
                    self._codes[text] = self._next_code
                    self._next_code += 1
        return np.array([self._codes.get(text, -1) for text in texts], dtype=np.int64)
