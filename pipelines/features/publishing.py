"""Which rows of a view a moment makes readable online: the newest of each key, of those that have become due.

Rows are held in memory in order of their stamps, so that a tick touches only what is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.features.online_layout import Frame, bare, key_encoder, messages_of
from pipelines.spec.view import ViewSpec


@dataclass(frozen=True)
class OnlineRows:
    """Rows as they become readable, one a key: serialised keys, a column a feature in the view's order, times in us.

    In the order of their keys a store with an index over them is written at its end, not all over.
    """

    keys: list[bytes]
    columns: list[pa.ChunkedArray]
    types: list[str]
    event_us: list[int]
    created_us: list[int]

    def __len__(self) -> int:
        return len(self.keys)

    def messages(self, frame: Frame = bare) -> list[list[bytes]]:
        """Each feature's values as serialised `feast.types.Value`s, each within its frame."""
        return [messages_of(kind, column, frame) for kind, column in zip(self.types, self.columns, strict=True)]


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
        self._types = [str(feature.type) for feature in spec.features.values()]

    @property
    def left(self) -> int:
        """How many rows are not taken yet."""
        return len(self._stamps) - self._at

    @property
    def next_us(self) -> int | None:
        """The oldest stamp of the rows that are not taken yet; None for no row."""
        return int(self._stamps[self._at]) if self.left else None

    @property
    def last_us(self) -> int | None:
        """The newest stamp of the rows that are not taken yet; None for no row."""
        return int(self._stamps[-1]) if self.left else None

    def joined(self, rows: pa.Table) -> Pending:
        """What is not taken yet, and these rows. Of rows that share keys and stamp the one created last will count."""
        names = [*self._names, *self.features, "event_timestamp", "created_timestamp"]
        left = self._rows.select(names).slice(self._at)
        both = pa.concat_tables([left, rows.select(names).cast(left.schema)])
        return Pending(self.spec, both.sort_by([("event_timestamp", "ascending"), ("created_timestamp", "ascending")]))

    def take(self, as_of_us: int) -> OnlineRows:
        """The newest row of every key that has rows due by `as_of_us`."""
        end = int(np.searchsorted(self._stamps, as_of_us, side="right"))
        due = self._rows.slice(self._at, max(0, end - self._at))
        self._at = max(self._at, end)
        return self._online(due)

    def _online(self, due: pa.Table) -> OnlineRows:
        keys = [due.column(name).to_pylist() for name in self._names]
        # Rows are in order of time: of those that share a key the last one stands.
        newest = {key: index for index, key in enumerate(zip(*keys, strict=True))}
        encoded = [self._encode_key(key) for key in newest]
        by_key = sorted(range(len(encoded)), key=encoded.__getitem__)
        picked = due.take(pa.array(newest.values(), pa.int64()).take(pa.array(by_key, pa.int64())))
        return OnlineRows(
            keys=[encoded[index] for index in by_key],
            columns=[picked.column(name) for name in self.features],
            types=self._types,
            event_us=picked.column("event_timestamp").cast(pa.int64()).to_pylist(),
            created_us=picked.column("created_timestamp").cast(pa.int64()).to_pylist(),
        )
