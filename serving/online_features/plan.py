"""What is read of the online store for one request: made once a route, so that a request only fills in its keys.

A plan joins the views of every release that may score the request: an entity's key is made once, and a view that two
releases pin is read once, so that both arms see the same moment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
_NUMBERS = frozenset((float, int, bool, type(None)))


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
    """One view as one release reads it: where its values lie in what was fetched; a row's values when there is none."""

    pin: ViewPin
    entity: int
    fetch: int
    positions: list[int]
    nothing: list[Value]


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


class Wanted(NamedTuple):
    """One request that features are read for: its input columns, its number of rows, its event time."""

    columns: Columns
    rows: int
    event_us: int


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

    def distinct(self, requests: list[list[Keys]]) -> list[list[bytes]]:
        """The keys of several requests together, an entity each."""
        if len(requests) == 1:
            return [of_entity.unique for of_entity in requests[0]]
        return [
            list(dict.fromkeys(key for keys in requests for key in keys[at].unique)) for at in range(len(self.entities))
        ]

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
        self.pinned.append(_Pinned(pin, entity_at, fetch_at, positions, [None] * len(positions)))
        return len(self.pinned) - 1


NOTHING = Reads(ReadPlan({}), [])


def time_budget_s(per_hundred_s: float, rows: int) -> float:
    """What reading may take for a request (wall): so much for each started hundred rows."""
    return per_hundred_s * (1 + (rows - 1) // 100)


def _keys(entity: EntityFetch, columns: Columns, rows: int) -> Keys:
    inputs = [columns[name] for name in entity.inputs]
    serialize = entity.key.serialize
    per_row: list[Key] = []
    trouble = ""
    for row in range(rows):
        values = [column[row] for column in inputs]
        key = None
        for value in values:
            if value is None or value != value:
                break
        else:
            try:
                key = serialize(values)
            except ContractError:
                # No row can have such a key: the answer is made without, and says so.
                trouble = _UNUSABLE
        per_row.append(key)
    if rows == 1:
        return Keys(per_row, [] if key is None else [key], trouble)
    return Keys(per_row, list(dict.fromkeys(key for key in per_row if key is not None)), trouble)


def _view_read(one: _Pinned, keys: Keys, found: Found, event_us: int) -> ViewRead:
    pin, rows = one.pin, found.rows
    oldest_us = event_us - pin.ttl_us if pin.ttl_us else None
    trouble = [keys.trouble] if keys.trouble else []
    if found.unavailable:
        trouble.append(f"unavailable ({found.unavailable})")
    held: list[int | None] = []
    per_row: list[list[Value]] = []
    for key in keys.per_row:
        row = rows.get(key) if key is not None else None
        if row is not None:
            at_us = row[0]
            if at_us > event_us:
                trouble.append("from after the request")
            elif oldest_us is not None and at_us < oldest_us:
                trouble.append("expired")
            else:
                held.append(at_us)
                of_row = row[1]
                per_row.append([of_row[position] for position in one.positions])
                continue
        elif key is not None and not found.unavailable:
            trouble.append("missing")
        held.append(None)
        per_row.append(one.nothing)
    values, columns = _by_feature(pin.features, per_row)
    return ViewRead(
        FeatureRead(pin.view, pin.features, held, values),
        columns,
        f"{pin.view}: {', '.join(sorted(set(trouble)))}" if trouble else "",
        bool(found.unavailable),
    )


def _by_feature(names: list[str], per_row: list[list[Value]]) -> tuple[list[list[Scalar]], Columns]:
    """The values of each feature, for the log, and as the columns that models and request features take."""
    values: list[list[Value]]
    if len(per_row) == 1:
        (row,) = per_row
        values = [[value] for value in row]
        if _NUMBERS.issuperset(map(type, row)):
            # One conversion for all features; numpy makes a null NaN.
            made = np.array(row, dtype=np.float64).reshape(-1, 1)
            return values, dict(zip(names, made, strict=True))  # type: ignore[return-value]  # numbers and nulls alone
    else:
        values = [list(of_feature) for of_feature in zip(*per_row, strict=True)]
    return [_loggable(column) for column in values], {
        name: _column(of_feature) for name, of_feature in zip(names, values, strict=True)
    }


def _loggable(values: list[Value]) -> list[Scalar]:
    """Numbers and text as they are; the log keeps a list or map as JSON text."""
    return [json.dumps(one, ensure_ascii=False) if isinstance(one, (list, dict)) else one for one in values]


def _column(values: list[Value]) -> np.ndarray:
    """Numbers as float64 with NaN for null; text and mixtures as objects."""
    if _NUMBERS.issuperset(map(type, values)):
        return np.array(values, dtype=np.float64)
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made
