"""Increments of evidence, each with the position in the collector's order at which it became known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.stats.evidence import WIDTH, Evidence
from pipelines.stats.nats import Ints


class Posting(NamedTuple):
    """n increments to one metric. Either `classes` (n,) index the rows of `table`, or `rows` (n, WIDTH) are given.

    `position` (n,), ascending; `stage` (n,) indices into the policy's stages; `parts` (n, p) codes of the slices it
    belongs to.
    """

    metric: str
    position: Ints
    stage: Ints
    parts: Ints
    classes: Ints | None = None
    table: Ints | None = None
    rows: Ints | None = None

    def only(self, keep: Ints | npt.NDArray[np.bool_]) -> Posting:
        """The increments that a mask marks or indices name."""
        return self._replace(
            position=self.position[keep],
            stage=self.stage[keep],
            parts=self.parts[keep],
            classes=None if self.classes is None else self.classes[keep],
            rows=None if self.rows is None else self.rows[keep],
        )

    def within(self, after: int, upto: int) -> Posting:
        """The increments with after < position <= upto: a view, for postings are in order of position."""
        low, high = np.searchsorted(self.position, [after, upto], side="right").tolist()
        if (low, high) == (0, len(self.position)):
            return self
        return self._replace(
            position=self.position[low:high],
            stage=self.stage[low:high],
            parts=self.parts[low:high],
            classes=None if self.classes is None else self.classes[low:high],
            rows=None if self.rows is None else self.rows[low:high],
        )

    def grouped(self, group: Ints, groups: int) -> Ints:
        """(groups, WIDTH) sums of the increments by `group` (n,), values below 0 left out."""
        keep = group >= 0
        whole = bool(keep.all())
        kept = group if whole else group[keep]
        total = np.zeros((groups, WIDTH), dtype=np.int64)
        if self.classes is not None and self.table is not None:
            size = len(self.table)
            classes = self.classes if whole else self.classes[keep]
            counts = np.bincount(kept * size + classes, minlength=groups * size).reshape(groups, size)
            # By class: int64 matrix products have no fast path, and few classes occur.
            for code in np.flatnonzero(counts.any(axis=0)).tolist():
                total += counts[:, code, None] * self.table[code]
            return total
        assert self.rows is not None
        if not len(kept):
            return total
        rows = self.rows if whole else self.rows[keep]
        if (kept[1:] < kept[:-1]).any():
            # A narrow type is sorted by radix, in linear time.
            order = np.argsort(kept.astype(np.min_scalar_type(groups)), kind="stable")
            kept, rows = kept[order], rows[order]
        starts = np.flatnonzero(np.r_[True, kept[1:] != kept[:-1]])
        total[kept[starts]] = np.add.reduceat(rows, starts, axis=0)
        return total

    def into(self, evidence: Evidence, stages: tuple[str, ...], slices: list[str]) -> None:
        """Adds all increments to `evidence`."""
        if not len(self.position):
            return
        whole: Ints | None = None
        for column in self.parts.T:
            placed = column >= 0
            group = self.stage * len(slices) + column
            sums = self.grouped(group if placed.all() else np.where(placed, group, -1), len(stages) * len(slices))
            if whole is None and placed.all():
                whole = sums.reshape(len(stages), len(slices), WIDTH).sum(axis=1)
            for code in np.flatnonzero(sums.any(axis=1)).tolist():
                k, s = divmod(code, len(slices))
                evidence.add_cell((stages[k], self.metric, slices[s]), sums[code])
        if whole is None:
            whole = self.grouped(self.stage, len(stages))
        for k in np.flatnonzero(whole.any(axis=1)).tolist():
            evidence.add_cell((stages[k], self.metric, ""), whole[k])


class Count(NamedTuple):
    """n increments to one counter."""

    name: str
    position: Ints
    stage: Ints
    amount: Ints | None = None

    def into(self, evidence: Evidence, stages: tuple[str, ...], after: int, upto: int) -> None:
        """Adds those with after < position <= upto to `evidence`."""
        keep = (self.position > after) & (self.position <= upto)
        stage = self.stage[keep]
        amount = None if self.amount is None else self.amount[keep]
        # As weights the amounts are floats, exact below 2**53.
        totals = np.bincount(stage, amount, minlength=len(stages))
        for k in np.flatnonzero(totals).tolist():
            evidence.count(self.name, stages[k], int(totals[k]))


class Step(NamedTuple):
    """What one batch added: increments and counts, and the watermark (event time, us) after each of its positions.

    `assigned`: position, sequence number and stage of each assignment, in order of position.
    """

    postings: list[Posting]
    counts: list[Count]
    first: int
    watermark_us: Ints
    row_us: Ints
    assigned: tuple[Ints, Ints, Ints]
    first_us: int | None
    stages: tuple[str, ...]
    slices: list[str]

    @property
    def last(self) -> int:
        """The batch's last position (first - 1 when it was empty)."""
        return self.first + len(self.row_us) - 1

    def into(self, evidence: Evidence, after: int | None = None, upto: int | None = None) -> None:
        """Adds to `evidence` what became known at after < position <= upto (everything by default)."""
        after = self.first - 1 if after is None else after
        upto = self.last if upto is None else upto
        if upto < self.first or not len(self.row_us):
            return
        for posting in self.postings:
            posting.within(after, upto).into(evidence, self.stages, self.slices)
        for count in self.counts:
            count.into(evidence, self.stages, after, upto)
        if self.first_us is not None:
            evidence.first_us = self.first_us if evidence.first_us is None else min(self.first_us, evidence.first_us)
        seen = int(self.watermark_us[upto - self.first])
        evidence.last_us = seen if evidence.last_us is None else max(seen, evidence.last_us)
