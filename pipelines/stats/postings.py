"""Increments of evidence, each with the position in the collector's order at which it became known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.stats.evidence import WIDTH, Evidence
from pipelines.stats.nats import Ints


class Posting(NamedTuple):
    """n increments to one metric. Either `classes` (n,) index the rows of `table`, or `rows` (n, WIDTH) are given.

    `position` (n,); `stage` (n,) indices into the policy's stages; `parts` (n, p) codes of the slices it belongs to.
    """

    metric: str
    position: Ints
    stage: Ints
    parts: Ints
    classes: Ints | None = None
    table: Ints | None = None
    rows: Ints | None = None

    def only(self, keep: npt.NDArray[np.bool_]) -> Posting:
        """The increments marked in `keep` (n,)."""
        return self._replace(
            position=self.position[keep],
            stage=self.stage[keep],
            parts=self.parts[keep],
            classes=None if self.classes is None else self.classes[keep],
            rows=None if self.rows is None else self.rows[keep],
        )

    def within(self, after: int, upto: int) -> Posting:
        """The increments with after < position <= upto."""
        keep = (self.position > after) & (self.position <= upto)
        return self if keep.all() else self.only(keep)

    def grouped(self, group: Ints, groups: int, columns: slice = slice(0, WIDTH)) -> Ints:
        """(groups, columns) sums of the increments by `group` (n,), values below 0 left out."""
        keep = group >= 0
        if self.classes is not None and self.table is not None:
            size = len(self.table)
            classes = self.classes if keep.all() else self.classes[keep]
            codes = (group if keep.all() else group[keep]) * size + classes
            counts = np.bincount(codes, minlength=groups * size).reshape(groups, size)
            used = np.flatnonzero(np.bincount(classes, minlength=size))
            # By column: int64 matrix products have no fast path, and few classes occur.
            exact = np.zeros((groups, columns.stop - columns.start), dtype=np.int64)
            for code in used.tolist():
                row = self.table[code, columns]
                if row.any():
                    exact += counts[:, code, None] * row[None, :]
            return exact
        assert self.rows is not None
        total = np.zeros((groups, columns.stop - columns.start), dtype=np.int64)
        kept, rows = group[keep], self.rows[keep][:, columns]
        if len(kept):
            order = np.argsort(kept, kind="stable")
            kept, rows = kept[order], rows[order]
            starts = np.flatnonzero(np.r_[True, kept[1:] != kept[:-1]])
            total[kept[starts]] = np.add.reduceat(rows, starts, axis=0)
        return total

    def into(self, evidence: Evidence, stages: tuple[str, ...], slices: list[str]) -> None:
        """Adds all increments to `evidence`."""
        if not len(self.position):
            return
        whole = self.grouped(self.stage, len(stages))
        for k in np.flatnonzero(whole.any(axis=1)).tolist():
            evidence.add_cell((stages[k], self.metric, ""), whole[k])
        for column in self.parts.T:
            group = np.where(column >= 0, self.stage * len(slices) + column, -1)
            sums = self.grouped(group, len(stages) * len(slices))
            for code in np.flatnonzero(sums.any(axis=1)).tolist():
                k, s = divmod(code, len(slices))
                evidence.add_cell((stages[k], self.metric, slices[s]), sums[code])


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
        amount = np.ones(len(stage), dtype=np.int64) if self.amount is None else self.amount[keep]
        totals = np.zeros(len(stages), dtype=np.int64)
        np.add.at(totals, stage, amount)
        for k in np.flatnonzero(totals):
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
