"""The rows at which a replay has to ask the judge: those after which an e-value stands at its bar.

Every row is looked at. Blocks of 128 rows in which no bet can come near the bar, even if all its rises came first, are
passed over as a whole; the others are walked row by row. What is said at a row, the judge says: this only finds rows.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from pipelines.rollout.bars import hold_bar, live_stages, proof_bar, proof_stages, rollback_bar
from pipelines.rollout.policy import Policy
from pipelines.stats.evidence import HARM, PROOF
from pipelines.stats.families import harm, proof
from pipelines.stats.latency_blocks import SUFFIX
from pipelines.stats.nats import SCALE, Bools, Floats, Ints
from pipelines.stats.postings import Posting, Step

BLOCK = 128
"""Rows passed over together."""
_SLACK = 1e-9
"""Nats by which the screening is more generous than the judge, against rounding."""
_CHUNK = 64
"""Blocks walked row by row at a time: their sums are held in memory."""


class Cause(Protocol):
    """One reason to look."""

    def row_from(self, row: int) -> int | None:
        """The first row at `row` or later at which the reason stands; None when there is none."""


class Rows:
    """A reason that stands at known rows (ascending)."""

    def __init__(self, rows: Ints) -> None:
        self._rows = rows

    def row_from(self, row: int) -> int | None:
        """The first of the rows that is not before `row`."""
        place = int(np.searchsorted(self._rows, row))
        return int(self._rows[place]) if place < len(self._rows) else None


class _Walk:
    """One family of bets through all blocks: what its sums can have been within each.

    An entry is a block and a stage with increments there. Axes of sums: entries or rows, places (all traffic first,
    then the slices), bets; `stage_sums` have an axis of stages before the bets.
    """

    def __init__(self, postings: list[Posting], step: Step, stages: list[int], slices: int, columns: slice) -> None:
        self._columns, self._places, self._count = columns, 1 + slices, len(stages)
        self._first = step.first
        self._place_of = np.full(len(step.stages), -1, dtype=np.int64)
        self._place_of[stages] = np.arange(len(stages))
        self._bearing = [posting for posting in map(self._telling, postings) if len(posting.position)]
        keys = [self._key(posting) for posting in self._bearing]
        present = np.zeros((len(step.row_us) // BLOCK + 1) * self._count, dtype=np.bool_)
        for key in keys:
            present[key] = True
        entries = np.flatnonzero(present)
        lookup = np.cumsum(present) - 1
        self.block, self._stage = np.divmod(entries, self._count)
        sums, rises = (np.zeros((len(entries), self._places, _width(columns)), dtype=np.int64) for _ in range(2))
        for posting, key in zip(self._bearing, keys, strict=True):
            self._add(posting, lookup[key], sums, rises)
        # Over all stages, and from the beginning of each.
        self._start, self._restart = sums.cumsum(axis=0), np.zeros_like(sums)
        self._of_stage = [np.flatnonzero(self._stage == k) for k in range(self._count)]
        for mine in self._of_stage:
            self._restart[mine] = sums[mine].cumsum(axis=0)
        self._rises = rises - sums

    def _telling(self, posting: Posting) -> Posting:
        """Without the increments that leave these bets as they are, and those of other stages."""
        here = self._place_of >= 0
        keep = np.ones(len(posting.position), dtype=np.bool_) if here.all() else here[posting.stage]
        if posting.classes is not None and posting.table is not None:
            bears: Bools = np.any(posting.table[:, self._columns] != 0, axis=1, keepdims=True)[:, 0]
            keep &= bears[posting.classes]
        return posting if keep.all() else posting.only(keep)

    def _key(self, posting: Posting) -> Ints:
        key: Ints = (posting.position - self._first) // BLOCK * self._count + self._place_of[posting.stage]
        return key

    def _add(self, posting: Posting, row: Ints, sums: Ints, rises: Ints | None) -> None:
        """Adds increments to `sums` (and those above zero to `rises`) by row. Sums of a row are below 2**53: floats
        are exact.
        """
        groups, width = len(sums) * self._places, sums.shape[-1]
        placed: list[tuple[Ints, Bools | None]] = [(row * self._places, None)]
        for column in posting.parts.T if self._places > 1 else ():
            known = column >= 0
            placed.append((row * self._places + 1 + column, None if known.all() else known))
        for code, mask in placed:
            at = code if mask is None else code[mask]
            if posting.classes is not None and posting.table is not None:
                classes = posting.classes if mask is None else posting.classes[mask]
                used = np.flatnonzero(np.bincount(classes, minlength=len(posting.table)))
                kind = np.zeros(len(posting.table), dtype=np.int64)
                kind[used] = np.arange(len(used))
                counts = np.bincount(at * len(used) + kind[classes], minlength=groups * len(used))
                worth = posting.table[used, self._columns].astype(np.float64)
                worth = np.hstack([worth, np.maximum(worth, 0.0)]) if rises is not None else worth
                added = (counts.reshape(groups, len(used)).astype(np.float64) @ worth).astype(np.int64)
                sums += added[:, :width].reshape(sums.shape)
                if rises is not None:
                    rises += added[:, width:].reshape(rises.shape)
                continue
            assert posting.rows is not None
            if not len(at):
                continue
            rows = posting.rows[:, self._columns] if mask is None else posting.rows[mask, self._columns]
            if (at[1:] < at[:-1]).any():
                order = np.argsort(at.astype(np.min_scalar_type(groups)), kind="stable")
                at, rows = at[order], rows[order]
            starts = np.flatnonzero(np.r_[True, at[1:] != at[:-1]])
            sums.reshape(groups, width)[at[starts]] += np.add.reduceat(rows, starts, axis=0)
            if rises is not None:
                rises.reshape(groups, width)[at[starts]] += np.add.reduceat(np.maximum(rows, 0), starts, axis=0)

    def near(self, need: float) -> Ints:
        """The blocks in which the log e-value may have stood at `need` nats: no mixture is above its best bet."""
        limit = math.floor((need - _SLACK) * SCALE)
        most = (np.maximum(self._start, self._restart) + self._rises).max(axis=(1, 2))
        index = np.arange(len(most))
        for mine in self._of_stage:
            # What an earlier stage has reached stays in the mixture.
            held = np.searchsorted(mine, index, side="right") - 1
            reached = self._restart[mine].max(axis=(1, 2))
            most[held >= 0] = np.maximum(most[held >= 0], reached[held[held >= 0]])
        # Where two stages share a block nothing is known of the order within it.
        shared = np.zeros(len(self.block), dtype=np.bool_)
        shared[1:] = self.block[1:] == self.block[:-1]
        return np.unique(self.block[shared | (most >= limit)])

    def stage_sums(self, block: Ints) -> Ints:
        """(n, places, stages, bets): the sums after each of the blocks."""
        sums = np.zeros((len(block), self._places, self._count, self._start.shape[-1]), dtype=np.int64)
        for k, mine in enumerate(self._of_stage):
            latest = np.searchsorted(self.block[mine], block, side="right") - 1
            sums[latest >= 0, :, k] = self._restart[mine[latest[latest >= 0]]]
        return sums

    def rows(self, blocks: Ints) -> tuple[Ints, Ints]:
        """The rows with increments in these blocks (ascending) and the sums after each (as `stage_sums`)."""
        lows, highs = self._first + blocks * BLOCK, self._first + (blocks + 1) * BLOCK
        held = []
        for posting in self._bearing:
            keep = _in_ranges(posting.position, lows, highs)
            if len(keep):
                held.append(posting.only(keep))
        none = np.zeros((0, self._places, self._count, self._start.shape[-1]), dtype=np.int64)
        if not held:
            return np.zeros(0, dtype=np.int64), none
        position = np.unique(np.concatenate([posting.position for posting in held]))
        each = np.zeros((len(position) * self._count, self._places, self._start.shape[-1]), dtype=np.int64)
        for posting in held:
            row = np.searchsorted(position, posting.position)
            self._add(posting, row * self._count + self._place_of[posting.stage], each, None)
        sums = each.reshape(len(position), self._count, self._places, each.shape[-1]).swapaxes(1, 2)
        run = sums.cumsum(axis=0)
        block = (position - self._first) // BLOCK
        opening = np.flatnonzero(np.r_[True, block[1:] != block[:-1]])
        base = self.stage_sums(block[opening] - 1) - run[opening] + sums[opening]
        return position, run + np.repeat(base, np.diff(np.r_[opening, len(block)]), axis=0)


def _width(columns: slice) -> int:
    return int(columns.stop - columns.start)


def _in_ranges(position: Ints, lows: Ints, highs: Ints) -> Ints:
    """The indices of the positions (ascending) that lie in one of the ascending, disjoint ranges low <= x < high."""
    edges = np.searchsorted(position, np.stack([lows, highs]))
    sizes = edges[1] - edges[0]
    shift = np.repeat(edges[0] - np.r_[0, sizes.cumsum()[:-1]], sizes)
    inside: Ints = np.arange(int(sizes.sum())) + shift
    return inside


class _Harm:
    """The rows after which a family's e-value stands at its bar: blocks are walked only as far as one asks."""

    def __init__(self, walk: _Walk, need: float, seen: Ints, first: int, *, max_slices: int, sticky: bool) -> None:
        self._walk, self._need, self._first = walk, need, first
        self._blocks = walk.near(need)
        self._seen, self._max_slices, self._sticky = seen, max_slices, sticky

    def row_from(self, row: int) -> int | None:
        """The first row, not before `row`, at which the e-value moves and stands at its bar or above."""
        place = int(np.searchsorted(self._blocks, (row - self._first) // BLOCK))
        size = 2
        while place < len(self._blocks):
            position, sums = self._walk.rows(self._blocks[place : place + size])
            met = position[self._log_e(position, sums) >= self._need - _SLACK]
            met = met[met >= row]
            if len(met):
                return int(met[0])
            place, size = place + size, min(2 * size, _CHUNK)
        return None

    def _log_e(self, position: Ints, sums: Ints) -> Floats:
        log_e = np.zeros(len(position))
        number = np.searchsorted(np.sort(self._seen), position, side="right")
        for count in np.unique(number).tolist():
            rows = number == count
            # Slices not seen yet have only zeros: leaving out as many of them as are missing is leaving out those.
            kept = np.r_[0, 1 + np.flatnonzero(self._seen <= position[rows].max())]
            log_e[rows] = harm(sums[rows][:, kept], max_slices=self._max_slices, sticky=self._sticky).log_e
        return log_e


class _Screen:
    """The families of one step."""

    def __init__(self, policy: Policy, step: Step) -> None:
        self._policy, self._step = policy, step
        self._sticky = policy.unit == "unit"
        self._names = [stage.name for stage in policy.stages]
        self._postings: dict[str, list[Posting]] = {}
        for posting in step.postings:
            self._postings.setdefault(posting.metric, []).append(posting)

    def harm(self, name: str, stages: tuple[str, ...], bar: float, *, sliced: bool = True) -> Cause:
        """The rows after which the family's e-value stands at its bar or above, where it moves."""
        if name not in self._postings or not stages or not math.isfinite(bar):
            return Rows(np.zeros(0, dtype=np.int64))
        slices = len(self._step.slices) if sliced else 0
        walk = _Walk(self._postings[name], self._step, [self._names.index(s) for s in stages], slices, HARM)
        limit, sticky = (self._policy.max_slices, self._sticky) if sliced else (1, False)
        seen = self._first_seen(name, slices)
        return _Harm(walk, math.log(bar), seen, self._step.first, max_slices=limit, sticky=sticky)

    def _first_seen(self, name: str, slices: int) -> Ints:
        """(slices,) the row at which each slice is first observed: from there on it counts, as it does live."""
        seen = np.full(slices, np.iinfo(np.int64).max)
        for posting in self._postings[name]:
            for column in posting.parts.T if slices else ():
                code, place = np.unique(column, return_index=True)
                at = posting.position[place][code >= 0]
                seen[code[code >= 0]] = np.minimum(seen[code[code >= 0]], at)
        return seen

    def ends(self, last_assigned: Ints) -> Ints:
        """The rows after which every required proof may be in and the last stage has its requests."""
        policy, step = self._policy, self._step
        least = policy.stages[-1].requests
        if least is None or len(last_assigned) < least:
            return np.zeros(0, dtype=np.int64)
        begins = int(last_assigned[least - 1])
        blocks = np.arange((step.last - step.first) // BLOCK + 1)
        chosen = blocks >= (begins - step.first) // BLOCK
        need, walks = math.log(proof_bar(policy)), []
        for name in policy.require:
            stages = [self._names.index(stage) for stage in proof_stages(policy, policy.metric(name))]
            if name not in self._postings or not stages:
                return np.zeros(0, dtype=np.int64)
            walk = _Walk(self._postings[name], step, stages, 0, PROOF)
            # Within a block a proof may stand for some rows alone; a block without increments is as the one before.
            possible = self._proven(walk.stage_sums(blocks), need)
            possible[walk.near(need)] = True
            chosen &= possible
            walks.append(walk)
        if not chosen.any():
            return np.zeros(0, dtype=np.int64)
        inside = blocks[chosen]
        edges = step.first + np.minimum((inside + 1) * BLOCK, len(step.row_us)) - 1
        traces = [self._trace(walk, inside, need) for walk in walks]
        rows = np.unique(np.concatenate([np.array([begins]), edges, *(position for position, _ in traces)]))
        rows = rows[(rows >= begins) & chosen[(rows - step.first) // BLOCK]]
        good = np.ones(len(rows), dtype=np.bool_)
        for position, proven in traces:
            good &= proven[np.searchsorted(position, rows, side="right") - 1]
        ends: Ints = rows[good]
        return ends

    def _proven(self, stage_sums: Ints, need: float) -> Bools:
        good: Bools = proof(stage_sums[:, 0], sticky=self._sticky) >= need - _SLACK
        return good

    def _trace(self, walk: _Walk, blocks: Ints, need: float) -> tuple[Ints, Bools]:
        """Rows, and whether the proof stands after each: just before each of the blocks, and every row in them."""
        position, states = [self._step.first + blocks * BLOCK - 1], [self._proven(walk.stage_sums(blocks - 1), need)]
        for part in np.array_split(blocks, -(-len(blocks) // _CHUNK)):
            rows, sums = walk.rows(part)
            position.append(rows)
            states.append(self._proven(sums, need))
        at = np.concatenate(position)
        order = np.argsort(at, kind="stable")
        return at[order], np.concatenate(states)[order]

    def gaps(self) -> Ints:
        """Rows that left sequence numbers out: the judge looks whether they are too many."""
        found = [
            count.position[count.amount > 0]
            for count in self._step.counts
            if count.name == "gaps" and count.amount is not None
        ]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)


def causes_to_look(policy: Policy, step: Step) -> list[Cause]:
    """What the judge has to be asked for about `step`, the whole of a rollout."""
    screen = _Screen(policy, step)
    causes = [screen.harm(check, live_stages(policy, check), hold_bar(policy)) for check in policy.integrity]
    for metric in policy.metrics:
        if metric.role == "report":
            continue
        bar, stages = rollback_bar(policy, metric), live_stages(policy, metric)
        causes.append(screen.harm(metric.name, stages, bar))
        if metric.kind == "quantile":
            causes.append(screen.harm(metric.name + SUFFIX, stages, bar, sliced=False))
    position, _, stage = step.assigned
    ends = screen.ends(position[stage == len(policy.stages) - 1])
    return [*causes, Rows(screen.gaps()), Rows(ends)]
