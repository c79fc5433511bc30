"""What is read of the online store for one request: made once a route, so that a request only fills in its keys.

A plan joins the views of every release that may score the request: an entity's key is made once, and a view that two
releases pin is read once, so that both arms see the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import FeatureRead
from pipelines.contracts.release import Columns, ViewPin
from serving.online_features.entity_keys import EntityKey
from serving.online_features.feast_values import Scalar, Value

Key = bytes | None
"""A serialised entity key; None for a row of the request that has none."""

Row = tuple[int, list[Value]]
"""A row of a view as found: its event time in microseconds, and its values in the order of `ViewFetch.features`."""

_UNUSABLE = "unusable key"


class ViewFetch(msgspec.Struct, frozen=True):
    """One view of one entity, with the features that any release of the plan takes from it, by place in a row."""

    view: str
    features: dict[str, int]


class EntityFetch(msgspec.Struct, frozen=True):
    """One entity: the request inputs its key is made of, and the views that are read by that key."""

    inputs: list[str]
    key: EntityKey
    views: list[ViewFetch]


class _Pinned(msgspec.Struct, frozen=True):
    """One view as one release reads it: where its values lie in what was fetched."""

    pin: ViewPin
    entity: int
    fetch: int
    positions: list[int]


class Keys(msgspec.Struct, frozen=True):
    """The keys of one request for one entity, a row each, and what is wrong with them."""

    per_row: list[Key]
    unique: list[bytes]
    trouble: str = ""


class Found(msgspec.Struct):
    """One view's rows by key, or why it could not be read."""

    rows: dict[bytes, Row]
    unavailable: str = ""


class ViewRead(msgspec.Struct):
    """One view as read for one request: what is logged, the columns for the model, and what was wrong.

    `unavailable`: the store could not be read; a missing or expired row is no such case.
    """

    logged: FeatureRead
    columns: Columns
    degraded: str = ""
    unavailable: bool = False


class Reads(msgspec.Struct):
    """All that was read for one request, at one moment, for every release of the plan; `took_us` is wall time."""

    plan: ReadPlan
    views: list[ViewRead]
    took_us: int = 0

    def of(self, release: str) -> list[ViewRead]:
        """The reads of the release with this digest, in the order of its manifest's views."""
        return [self.views[index] for index in self.plan.by_release[release]]


class ReadPlan:
    """`releases`: the pins of each release by its digest."""

    def __init__(self, releases: Mapping[str, Sequence[ViewPin]]) -> None:
        self.by_release: dict[str, list[int]] = {}
        self.entities: list[EntityFetch] = []
        self.pinned: list[_Pinned] = []
        for digest, pins in releases.items():
            self.by_release[digest] = [self._enter(pin) for pin in pins]

    def keys(self, columns: Columns, rows: int) -> list[Keys]:
        """The keys of a request's rows, an entity each. A null join key (no tail number) is a fact of the request."""
        return [_keys(entity, columns, rows) for entity in self.entities]

    def reads(self, keys: list[Keys], found: list[list[Found]], event_us: int, took_us: int) -> Reads:
        """What `found` (by entity and view, as in `entities`) means for a request at `event_us`: TTLs are held here.

        The Feast SDK never checks a TTL when it reads online.
        """
        views = [
            _view_read(one, keys[one.entity], found[one.entity][one.fetch], event_us)
            for one in self.pinned  # in order: an index of `by_release` is a place in this list
        ]
        return Reads(self, views, took_us)

    def without_store(self, keys: list[Keys], why: str, took_us: int = 0) -> Reads:
        """What a request gets when nothing could be read: nulls everywhere, for the defaults to stand in."""
        return self.reads(keys, [[Found({}, why) for _ in entity.views] for entity in self.entities], 0, took_us)

    def _enter(self, pin: ViewPin) -> int:
        for index, known in enumerate(self.pinned):
            if known.pin == pin:
                return index
        key = EntityKey(pin.join_key_types)
        inputs = [pin.entity[name] for name in key.names]
        entity_at, entity = next(
            ((at, one) for at, one in enumerate(self.entities) if one.key == key and one.inputs == inputs), (-1, None)
        )
        if entity is None:
            entity_at, entity = len(self.entities), EntityFetch(inputs, key, [])
            self.entities.append(entity)
        fetch_at, fetch = next(((at, one) for at, one in enumerate(entity.views) if one.view == pin.view), (-1, None))
        if fetch is None:
            fetch_at, fetch = len(entity.views), ViewFetch(pin.view, {})
            entity.views.append(fetch)
        positions = [fetch.features.setdefault(name, len(fetch.features)) for name in pin.features]
        self.pinned.append(_Pinned(pin, entity_at, fetch_at, positions))
        return len(self.pinned) - 1


NOTHING = Reads(ReadPlan({}), [])


def _keys(entity: EntityFetch, columns: Columns, rows: int) -> Keys:
    inputs = [columns[name] for name in entity.inputs]
    per_row: list[Key] = []
    trouble = ""
    for row in range(rows):
        values = [column[row] for column in inputs]
        if any(value is None or value != value for value in values):
            per_row.append(None)
            continue
        try:
            per_row.append(entity.key.serialize(values))
        except ContractError:
            # No row can have such a key: the answer is made without, and says so.
            per_row.append(None)
            trouble = _UNUSABLE
    return Keys(per_row, list(dict.fromkeys(key for key in per_row if key is not None)), trouble)


def _view_read(one: _Pinned, keys: Keys, found: Found, event_us: int) -> ViewRead:
    pin, rows = one.pin, found.rows
    oldest_us = event_us - pin.ttl_us if pin.ttl_us else None
    trouble = {keys.trouble} if keys.trouble else set()
    if found.unavailable:
        trouble.add(f"unavailable ({found.unavailable})")
    held: list[int | None] = []
    values: list[list[Value]] = [[] for _ in pin.features]
    for key in keys.per_row:
        row = rows.get(key) if key is not None else None
        if row is None:
            if key is not None and not found.unavailable:
                trouble.add("missing")
        elif row[0] > event_us:
            trouble.add("from after the request")
            row = None
        elif oldest_us is not None and row[0] < oldest_us:
            trouble.add("expired")
            row = None
        if row is None:
            held.append(None)
            for column in values:
                column.append(None)
        else:
            held.append(row[0])
            of_row = row[1]
            for column, position in zip(values, one.positions, strict=True):
                column.append(of_row[position])
    return ViewRead(
        FeatureRead(pin.view, pin.features, held, [_loggable(column) for column in values]),
        {name: _column(of_feature) for name, of_feature in zip(pin.features, values, strict=True)},
        f"{pin.view}: {', '.join(sorted(trouble))}" if trouble else "",
        bool(found.unavailable),
    )


def _loggable(values: list[Value]) -> list[Scalar]:
    """Numbers and text as they are; the log keeps a list or map as JSON text."""
    for value in values:
        if isinstance(value, (list, dict)):
            return [json.dumps(one, ensure_ascii=False) if isinstance(one, (list, dict)) else one for one in values]
    return values  # type: ignore[return-value]  # no list and no dict is among them


def _column(values: list[Value]) -> np.ndarray:
    """Numbers as float64 with NaN for null; text and mixtures as objects."""
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made
