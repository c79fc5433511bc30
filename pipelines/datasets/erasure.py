"""What is written down of an erasure: decided before anything goes, done when nothing is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

SCHEMA = "slipway-erasure/1"


class TrainedOn(msgspec.Struct, frozen=True, kw_only=True):
    """A training set that held rows of the subject, and how many."""

    digest: str
    model: str
    rows: int


class TrainedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """A release that was fitted on such a training set."""

    model: str
    digest: str
    semver: str
    training_set: str


class Remaining(msgspec.Struct, frozen=True, kw_only=True):
    """What cannot be deleted in place. `until`: the ISO date on which it is gone by itself; empty: never, see `why`."""

    what: str
    until: str
    why: str


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure as it was decided. `keys` are names, `tombstones` keyed hashes: the subject itself is nowhere.

    `tables`: rows by lake table; `log`: requests of the inference log by model and rollout (empty: outside any).
    """

    entity: str
    keys: list[str]
    tombstones: list[str]
    reason: str
    actor: str
    at_us: int
    tables: dict[str, int]
    log: dict[str, dict[str, int]]
    online: int
    training_sets: list[TrainedOn]
    releases: list[TrainedRelease]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an erasure: nothing of the subject is left but what `remaining` says."""

    erasure: int
    at_us: int
    remaining: list[Remaining]


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure: its number, what was decided, and its end; None while it has not come to it."""

    n: int
    decided: Decided
    done: Done | None = None

    @property
    def id(self) -> str:
        """How it is named everywhere."""
        return erasure_id(self.n)

    def requests(self, model: str, rollout: str) -> int:
        """How many requests of a rollout's log lost their payload."""
        return self.decided.log.get(model, {}).get(rollout, 0)

    def reaches(self, model: str, tables: Iterable[str]) -> int:
        """How many rows have gone that a model's backtest may read: of its log, and of these tables."""
        return sum(self.decided.log.get(model, {}).values()) + sum(self.decided.tables.get(name, 0) for name in tables)


def erasure_id(n: int) -> str:
    """`erasure-<n>`."""
    return f"erasure-{n}"


def body_of(what: Decided | Done) -> dict[str, Any]:
    """The body of a record's entry."""
    word = "decided" if isinstance(what, Decided) else "done"
    return {"schema": SCHEMA, word: msgspec.to_builtins(what)}


def erasures_of(entries: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Erasure]:
    """The erasures that numbered bodies tell of, oldest first."""
    found: dict[int, Erasure] = {}
    for n, body in entries:
        if "decided" in body:
            found[n] = Erasure(n=n, decided=msgspec.convert(body["decided"], Decided))
        elif "done" in body:
            done = msgspec.convert(body["done"], Done)
            found[done.erasure] = msgspec.structs.replace(found[done.erasure], done=done)
    return list(found.values())
