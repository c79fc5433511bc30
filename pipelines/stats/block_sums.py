"""Sums of increments by block of rows: blocks in which a bet may come to a height, and the sums row by row there."""

from __future__ import annotations

import math

import numpy as np

from pipelines.stats.nats import SCALE, Bools, Ints
from pipelines.stats.postings import Posting, Step

BLOCK = 128
"""Rows of one block."""


class BlockSums:
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
        limit = math.floor(need * SCALE)
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
