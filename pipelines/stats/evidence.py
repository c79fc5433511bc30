"""Evidence: what a rollout has shown so far, as integers that add.

A cell belongs to (stage, metric, slice) and is one vector of 64-bit integers laid out as in `COLUMNS`; the slice `""`
is all traffic. Partial evidence from several files, workers or partitions adds in any order to the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from pipelines.contracts.errors import ContractError
from pipelines.stats.nats import Ints, checked

SCHEMA = "slipway-evidence/1"

GRID = 8
"""Bets in one mixture."""
MOMENTS: tuple[str, ...] = ("n", "n1", "n0", "y1", "y0", "s", "v")
"""n settled observations; n1, n0 of each arm (1 = challenger); y1, y0 sums of outcomes by arm (2**-24); s sum of
effects and v sum of squared effects (2**-24): the effect is challenger minus champion, one unbiased value an
observation.
"""
COLUMNS: tuple[str, ...] = MOMENTS + tuple(f"{bet}{i}" for bet in ("harm", "proof", "better") for i in range(GRID))
"""Moments, then log e-values in 2**-40 nats: against "no harm", against "worse than the margin", against "not
better".
"""
WIDTH = len(COLUMNS)
HARM = slice(len(MOMENTS), len(MOMENTS) + GRID)
PROOF = slice(HARM.stop, HARM.stop + GRID)
BETTER = slice(PROOF.stop, PROOF.stop + GRID)

CellKey = tuple[str, str, str]
CounterKey = tuple[str, str]


def digest_of(document: bytes) -> str:
    """SHA-256 in hex over evidence as canonical JSON."""
    return hashlib.sha256(document).hexdigest()


class Evidence:
    """Addable evidence of one rollout.

    `cells[(stage, metric, slice)]` is an int64 vector of `WIDTH`. `counters[(name, stage)]` are whole numbers:
    requests, champion, challenger, exposed, warmup, pairs, labelled, unlabelled, kpis, lost, duplicates, retries,
    gaps, ... `first_us`, `last_us` are the event times of the first assignment and of the watermark; None without
    rows.
    """

    __slots__ = ("cells", "counters", "first_us", "last_us")

    def __init__(
        self,
        cells: Mapping[CellKey, Ints] | None = None,
        counters: Mapping[CounterKey, int] | None = None,
        first_us: int | None = None,
        last_us: int | None = None,
    ) -> None:
        self.cells: dict[CellKey, Ints] = dict(cells or {})
        self.counters: dict[CounterKey, int] = dict(counters or {})
        self.first_us = first_us
        self.last_us = last_us

    def add_cell(self, key: CellKey, vector: Ints) -> None:
        """Adds `vector` (int64, `WIDTH`) to the cell `key`. Raises ContractError near the end of 64 bits."""
        held = self.cells.get(key)
        self.cells[key] = checked(vector.copy() if held is None else held + vector)

    def count(self, name: str, stage: str, number: int) -> None:
        """Adds `number` to a counter; zero leaves no trace."""
        if number:
            self.counters[(name, stage)] = self.counters.get((name, stage), 0) + int(number)

    def counted(self, name: str, stages: Iterable[str] | None = None) -> int:
        """The sum of a counter over `stages` (all when None)."""
        wanted = None if stages is None else set(stages)
        return sum(
            v for (key, stage), v in self.counters.items() if key == name and (wanted is None or stage in wanted)
        )

    @property
    def event_time_s(self) -> float:
        """Seconds of event time from the first assignment to the watermark."""
        return 0.0 if self.first_us is None or self.last_us is None else (self.last_us - self.first_us) / 1e6

    def copy(self) -> Evidence:
        """An independent copy."""
        return Evidence({k: v.copy() for k, v in self.cells.items()}, self.counters, self.first_us, self.last_us)

    def __add__(self, other: Evidence) -> Evidence:
        total = self.copy()
        for key, vector in other.cells.items():
            total.add_cell(key, vector)
        for (name, stage), number in other.counters.items():
            total.count(name, stage, number)
        firsts = [t for t in (self.first_us, other.first_us) if t is not None]
        lasts = [t for t in (self.last_us, other.last_us) if t is not None]
        total.first_us = min(firsts, default=None)
        total.last_us = max(lasts, default=None)
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Evidence) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # Python's own way to say: not hashable

    def rows(self) -> tuple[list[CellKey], Ints]:
        """The cells in order of their keys: n keys, (n, WIDTH) sums."""
        keys = sorted(self.cells)
        held = [self.cells[key] for key in keys]
        rows = np.concatenate(held).reshape(-1, WIDTH) if keys else np.zeros((0, WIDTH), dtype=np.int64)
        return keys, rows

    def to_json(self, ordered: tuple[list[CellKey], Ints] | None = None) -> bytes:
        """Canonical JSON: equal evidence has equal bytes. `ordered`: its `rows()`, where they are at hand."""
        keys, rows = self.rows() if ordered is None else ordered
        vectors: list[list[int]] = rows.tolist()
        filled: list[bool] = np.any(rows, axis=1, keepdims=True)[:, 0].tolist()
        body = {
            "schema": SCHEMA,
            "columns": list(COLUMNS),
            "cells": [[*key, vector] for key, vector, any_ in zip(keys, vectors, filled, strict=True) if any_],
            "counters": [[*key, self.counters[key]] for key in sorted(self.counters) if self.counters[key]],
            "first_us": self.first_us,
            "last_us": self.last_us,
        }
        # The same bytes as `canonical_json`, several times faster: a live look hashes its evidence each time.
        return msgspec.json.encode(body, order="sorted")

    @staticmethod
    def from_json(data: bytes | str) -> Evidence:
        """The evidence in `data`. Raises ContractError for another schema or layout."""
        body = msgspec.json.decode(data)
        if body.get("schema") != SCHEMA or body.get("columns") != list(COLUMNS):
            raise ContractError("evidence", got=body.get("schema"), expected=f"{SCHEMA} with {WIDTH} columns")
        return Evidence(
            {(stage, metric, part): np.array(vector, dtype=np.int64) for stage, metric, part, vector in body["cells"]},
            {(name, stage): number for name, stage, number in body["counters"]},
            body["first_us"],
            body["last_us"],
        )

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the canonical JSON."""
        return digest_of(self.to_json())
