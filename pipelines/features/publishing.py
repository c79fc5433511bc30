"""Which rows of a view a moment makes readable online: the newest of each key, of those that have become due.

Rows are held in memory in order of their stamps, so that a tick touches only what is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.features.online_layout import key_encoder, value_encoder
from pipelines.spec.view import ViewSpec


class OnlineRow(NamedTuple):
    """One key's row as it becomes readable: the serialised key, its values in the view's order, plain and as messages.

    `messages` are serialised `feast.types.Value`s; times are in microseconds.
    """

    key: bytes
    values: list[Any]
    messages: list[bytes]
    event_us: int
    created_us: int


class Pending:
    """Rows of one view that are not readable yet: the lake's layout, ordered by `event_timestamp`."""

    def __init__(self, spec: ViewSpec, rows: pa.Table) -> None:
        self.spec = spec
        self._rows = rows
        self._stamps: np.ndarray[Any, np.dtype[np.int64]] = (
            rows.column("event_timestamp").cast(pa.int64()).to_numpy().astype(np.int64)
        )
        self._at = 0
        self._names, self._encode_key = key_encoder(spec.entity.keys)
        self.features = list(spec.features)
        self._encoders = [value_encoder(feature.type) for feature in spec.features.values()]

    @property
    def left(self) -> int:
        """How many rows are not taken yet."""
        return len(self._stamps) - self._at

    def take(self, as_of_us: int) -> list[OnlineRow]:
        """The newest row of every key that has rows due by `as_of_us`."""
        end = int(np.searchsorted(self._stamps, as_of_us, side="right"))
        due = self._rows.slice(self._at, max(0, end - self._at))
        self._at = max(self._at, end)
        return list(self._online(due))

    def _online(self, due: pa.Table) -> Iterator[OnlineRow]:
        keys = [due.column(name).to_pylist() for name in self._names]
        # Rows are in order of time: of those that share a key the last one stands.
        newest = {key: index for index, key in enumerate(zip(*keys, strict=True))}
        chosen = list(newest.values())
        if not chosen:
            return
        picked = due.take(pa.array(chosen, pa.int64()))
        stamps = picked.column("event_timestamp").cast(pa.int64()).to_pylist()
        created = picked.column("created_timestamp").cast(pa.int64()).to_pylist()
        columns = [picked.column(name).to_pylist() for name in self.features]
        messages = [[encode(value) for value in of] for encode, of in zip(self._encoders, columns, strict=True)]
        for index, key in enumerate(newest):
            yield OnlineRow(
                self._encode_key(key),
                [of_feature[index] for of_feature in columns],
                [of_feature[index] for of_feature in messages],
                stamps[index],
                created[index],
            )
