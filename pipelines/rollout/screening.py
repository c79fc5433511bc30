"""The rows at which a replay has to ask the judge: those after which an e-value stands at its bar.

Every row is looked at. Blocks of 128 rows in which no bet can come near the bar, even if all its rises came first, are
passed over as a whole; the others are walked row by row. What is said at a row, the judge says: this only finds rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from pipelines.rollout.bars import hold_bar, live_stages, proof_bar, proof_stages, restart_weights, rollback_bar
from pipelines.rollout.policy import Policy
from pipelines.stats.block_sums import BLOCK, BlockSums
from pipelines.stats.evidence import HARM, PROOF
from pipelines.stats.families import Family, harm, proof
from pipelines.stats.latency_blocks import SUFFIX
from pipelines.stats.nats import Bools, Floats, Ints
from pipelines.stats.postings import Posting, Step

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


class _Harm:
    """The rows after which a family's e-value stands at its bar: blocks are walked only as far as one asks."""

    def __init__(
        self, walk: BlockSums, need: float, seen: Ints, first: int, family_of: Callable[[Ints], Family]
    ) -> None:
        self._walk, self._need, self._first = walk, need, first
        self._blocks = walk.near(need - _SLACK)
        self._seen, self._family_of = seen, family_of

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
            log_e[rows] = self._family_of(sums[rows][:, kept]).log_e
        return log_e


class _Proof:
    """Where the proof of a metric stands: over all traffic, and in each slice seen so far when the walk has slices."""

    def __init__(self, walk: BlockSums, need: float, seen: Ints, first: int, *, sticky: bool) -> None:
        self._walk, self._need, self._first = walk, need, first
        self._seen, self._sticky = seen, sticky

    def _stands(self, row: Ints, sums: Ints) -> Bools:
        good = proof(sums, sticky=self._sticky) >= self._need - _SLACK
        good[:, 1:] |= self._seen > row[:, None]
        stands: Bools = np.logical_and.reduce(good, axis=1)
        return stands

    def _end(self, block: Ints) -> Ints:
        """The last row of each block."""
        return self._first + (block + 1) * BLOCK - 1

    def possible(self, blocks: Ints) -> Bools:
        """The blocks in which the proof may stand after some row; one without increments is as the one before."""
        possible = self._stands(self._end(blocks - 1), self._walk.stage_sums(blocks))
        possible[self._walk.near(self._need - _SLACK)] = True
        return possible

    def trace(self, blocks: Ints) -> tuple[Ints, Bools]:
        """Rows, and whether the proof stands after each: just before each of the blocks, and every row in them."""
        position = [self._end(blocks - 1)]
        states = [self._stands(position[0], self._walk.stage_sums(blocks - 1))]
        for part in np.array_split(blocks, -(-len(blocks) // _CHUNK)):
            rows, sums = self._walk.rows(part)
            position.append(rows)
            states.append(self._stands(rows, sums))
        at = np.concatenate(position)
        order = np.argsort(at, kind="stable")
        return at[order], np.concatenate(states)[order]


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
        walk = BlockSums(self._postings[name], self._step, [self._names.index(s) for s in stages], slices, HARM)
        limit, sticky = (self._policy.max_slices, self._sticky) if sliced else (1, False)
        seen = self._first_seen(name, slices)
        weights = restart_weights(self._policy, stages)
        family_of = partial(harm, max_slices=limit, sticky=sticky, weights=weights)
        return _Harm(walk, math.log(bar), seen, self._step.first, family_of)

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
        need = math.log(proof_bar(policy))
        proofs: list[_Proof] = []
        for name in policy.require:
            stages = [self._names.index(stage) for stage in proof_stages(policy, policy.metric(name))]
            if name not in self._postings or not stages:
                return np.zeros(0, dtype=np.int64)
            slices = len(step.slices) if policy.metric(name).per_slice else 0
            proof_of = _Proof(
                BlockSums(self._postings[name], step, stages, slices, PROOF),
                need, self._first_seen(name, slices), step.first, sticky=self._sticky,
            )  # fmt: skip
            chosen &= proof_of.possible(blocks)
            proofs.append(proof_of)
        if not chosen.any():
            return np.zeros(0, dtype=np.int64)
        inside = blocks[chosen]
        edges = step.first + np.minimum((inside + 1) * BLOCK, len(step.row_us)) - 1
        traces = [proof_of.trace(inside) for proof_of in proofs]
        rows = np.unique(np.concatenate([np.array([begins]), edges, *(position for position, _ in traces)]))
        rows = rows[(rows >= begins) & chosen[(rows - step.first) // BLOCK]]
        good = np.ones(len(rows), dtype=np.bool_)
        for position, proven in traces:
            good &= proven[np.searchsorted(position, rows, side="right") - 1]
        ends: Ints = rows[good]
        return ends

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
