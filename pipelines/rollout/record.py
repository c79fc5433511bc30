"""The decision record: one hash chain per model over canonical JSON, and how it is verified."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pipelines.contracts.canonical import canonical_json

GENESIS = "0" * 64
ANCHORS = "*"
"""In the place of a model's name: the global record, into which the heads of all others are written each day."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a model's record. `n` counts from 1; `hash` covers the previous hash, the model, `n` and the body."""

    model: str
    n: int
    prev_hash: str
    hash: str
    body: str

    @property
    def id(self) -> str:
        """The decision id people and actions use."""
        return decision_id(self.model, self.n)


def decision_id(model: str, n: int) -> str:
    """`<model>:<n>`."""
    return f"{model}:{n}"


def entry(model: str, previous: Entry | None, body: Mapping[str, Any]) -> Entry:
    """The next entry of a model's chain. `body` is JSON-ready and holds no NaN (ValueError)."""
    n = previous.n + 1 if previous is not None else 1
    prev_hash = previous.hash if previous is not None else GENESIS
    text = canonical_json(dict(body)).decode()
    return Entry(model=model, n=n, prev_hash=prev_hash, hash=_hash(model, n, prev_hash, text), body=text)


def verify(entries: Iterable[Entry], anchors: Mapping[int, str] | None = None) -> list[str]:
    """What is wrong with one model's entries, given in order of `n`; empty when the chain and every anchor hold.

    `anchors` maps numbers to the hashes that were written down elsewhere on some day.
    """
    faults: list[str] = []
    expected_n, previous = 1, GENESIS
    seen: dict[int, str] = {}
    for line in entries:
        if line.n != expected_n:
            faults.append(f"{line.model}: entry {expected_n} is missing (found {line.n})")
        if line.prev_hash != previous:
            faults.append(f"{line.id}: does not follow the entry before it")
        if _hash(line.model, line.n, line.prev_hash, line.body) != line.hash:
            faults.append(f"{line.id}: its body or number is not what its hash was taken of")
        seen[line.n] = line.hash
        expected_n, previous = line.n + 1, line.hash
    for n, anchored in sorted((anchors or {}).items()):
        if seen.get(n) != anchored:
            faults.append(f"entry {n}: anchored hash {anchored[:12]} is not in the chain")
    return faults


def compare(entries: Iterable[Entry], copy: Iterable[Entry]) -> list[str]:
    """Where a copy that was kept elsewhere says otherwise than one model's entries; a copy may lag behind."""
    there = {line.n: line for line in entries}
    return [
        f"{line.id}: its copy in the lake has hash {line.hash[:12]}, "
        + (f"the record {there[line.n].hash[:12]}" if line.n in there else "the record has no such entry")
        for line in copy
        if line.n not in there or there[line.n] != line
    ]


def _hash(model: str, n: int, prev_hash: str, body: str) -> str:
    return hashlib.sha256(f"{prev_hash}\n{model}\n{n}\n{body}".encode()).hexdigest()
