"""Puts a batch's events into the one order that everything downstream uses, and numbers them.

The order: by wall time, each stream's own order kept (a stream's clock that steps back does not reorder it), ties by
stream and counter. It depends on the batch's bytes alone, so a batch done again comes out the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from pipelines.collect.quarantine import Refused
from pipelines.contracts.events import Assignment, Event, EventId

BLOCK = 500
"""Assignments of a rollout in one block: predictable parts of bets are frozen in it."""


class Numbered(NamedTuple):
    """An event with the collector's numbers.

    `seq` counts the model's events of all kinds from 1; `rollout_seq` a rollout's assignments that are no repeats
    (None for every other event); `duplicate` marks an assignment whose request id the rollout has seen, or a retry.
    """

    event: Event
    seq: int
    rollout_seq: int | None
    duplicate: bool


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """The end of block `block` (from 0) of a rollout: the assignment that closes it."""

    rollout_id: str
    block: int
    last_rollout_seq: int
    last_seq: int
    event_us: int
    wall_us: int


class Counters(msgspec.Struct, kw_only=True):
    """Numbers given so far: events by model, assignments by rollout."""

    seq: dict[str, int] = {}
    rollout_seq: dict[str, int] = {}

    def copy(self) -> Counters:
        """An independent copy."""
        return Counters(seq=dict(self.seq), rollout_seq=dict(self.rollout_seq))


def merge(parts: Sequence[Sequence[Event | Refused]]) -> Iterator[Event | Refused]:
    """All events in the collector's order. Parts of one stream must come in their order."""
    streams: dict[tuple[str, int, int], list[Event | Refused]] = {}
    for part in parts:
        for event in part[:1]:
            streams.setdefault((event.id.gateway, event.id.worker, event.id.epoch), []).extend(part)
    if len(streams) == 1:
        yield from next(iter(streams.values()))
        return
    keyed = [_keyed(events_) for events_ in streams.values()]
    for _, _, event in heapq.merge(*keyed, key=lambda item: item[:2]):
        yield event


def _keyed(stream: Iterable[Event | Refused]) -> Iterator[tuple[int, EventId, Event | Refused]]:
    latest = 0
    for event in stream:
        latest = max(latest, event.wall_us)
        yield latest, event.id, event


def number(
    ordered: Iterable[Event | Refused], counters: Counters, seen: Mapping[str, Mapping[str, int] | set[str]]
) -> tuple[list[Numbered], list[Block]]:
    """Number the events, moving `counters` on; `seen` holds the request ids that rollouts have had before this batch.

    Returns the numbered events and the blocks that they close. What is refused is not among them, but an assignment
    takes a number of its rollout with it, which then no row has.
    """
    numbered: list[Numbered] = []
    blocks: list[Block] = []
    fresh: dict[str, set[str]] = {}
    for event in ordered:
        if isinstance(event, Refused):
            rollout = event.claim("rollout_id")
            # A rollout without numbers has not begun, or is none at all.
            if rollout in counters.rollout_seq and _is_lost(event, seen.get(rollout, {}), fresh.get(rollout, set())):
                counters.rollout_seq[rollout] += 1
            continue
        seq = counters.seq[event.model] = counters.seq.get(event.model, 0) + 1
        if type(event) is not Assignment or event.rollout_id is None:
            is_retry = type(event) is Assignment and event.retry
            numbered.append(Numbered(event, seq, None, is_retry))
            continue
        rollout = event.rollout_id
        mine = fresh.setdefault(rollout, set())
        if event.retry or event.request_id in mine or event.request_id in seen.get(rollout, ()):
            numbered.append(Numbered(event, seq, None, True))
            continue
        mine.add(event.request_id)
        place = counters.rollout_seq[rollout] = counters.rollout_seq.get(rollout, 0) + 1
        numbered.append(Numbered(event, seq, place, False))
        if place % BLOCK == 0:
            blocks.append(
                Block(
                    rollout_id=rollout,
                    block=place // BLOCK - 1,
                    last_rollout_seq=place,
                    last_seq=seq,
                    event_us=event.event_us,
                    wall_us=event.wall_us,
                )
            )
    return numbered, blocks


def _is_lost(event: Refused, seen: Mapping[str, int] | set[str], mine: set[str]) -> bool:
    """Whether it would have been another request of its rollout, as far as its payload can be believed."""
    if event.claim("kind") != "assignment" or event.claims.get("retry"):
        return False
    request = event.claim("request_id")
    return request not in mine and request not in seen
