"""Whether what was read online is what the lake says could be read: counted by view and feature, and judged.

For each logged read the lake gives three rows of the key: the newest one readable at the request (what should have been
used), the one with the stamp that was used (what its values should have been), and the first one after that (since when
a newer one was due). So lag, an older row used, is told apart from error, the same row with other values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from pipelines.contracts.canonical import canonical_json, digest

Value = float | int | str | bool | None
INPUTS = "inputs"
"""Stands for a view where the inputs that clients sent are compared with those of the model's `requests` transform."""


class Bars(msgspec.Struct, frozen=True, kw_only=True):
    """What is allowed. `tolerance` by feature, absolute, in its unit; shares are of the rows compared.

    lag_us: how long a row may be due and not yet readable online, before it counts as late (event time).
    """

    tolerance_rel: float = 0.0
    tolerance: dict[str, float] = {}
    wrong_share: float = 0.0
    late_share: float = 0.0
    lag_us: int = 0


class Read(NamedTuple):
    """One row of one request as logged, beside what the lake has of its key. Times in microseconds of event time.

    stamp_us: of the row used, None for none. why: the gateway's words about that view (`expired`, `unavailable`).
    expected_us: the newest row readable at `asked_us` and not expired. same: the values the lake has under `stamp_us`,
    None when it has no such row. due_us: stamp of the first row after the one used (of the key's first, without one).
    """

    request_id: str
    asked_us: int
    stamp_us: int | None
    values: Sequence[Value]
    why: str = ""
    expected_us: int | None = None
    same: Sequence[Value] | None = None
    due_us: int | None = None


class FeatureParity(msgspec.Struct, frozen=True, kw_only=True):
    """One feature over the rows whose stamp is the same on both sides. `largest`: the largest absolute difference."""

    feature: str
    compared: int
    mismatched: int
    missing: int
    extra: int
    largest: float
    example: str

    @property
    def wrong(self) -> int:
        """How many values are not those of the lake."""
        return self.mismatched + self.missing + self.extra


class ViewParity(msgspec.Struct, frozen=True, kw_only=True):
    """One view. Of `rows`, each is counted once as missing, extra or mismatched (error), or none of them.

    missing: no row online though one was due for longer than allowed. extra: a row the lake does not have. lagging: an
    older row than the newest readable one, or none yet; late: lagging longer than allowed. unread: the store did not
    answer, and nothing is known.
    """

    view: str
    bars: Bars
    rows: int
    mismatched: int
    missing: int
    extra: int
    lagging: int
    late: int
    unread: int
    largest_lag_us: int
    features: list[FeatureParity]

    @property
    def wrong(self) -> int:
        """Rows in error."""
        return self.mismatched + self.missing + self.extra

    @property
    def faults(self) -> list[str]:
        """What is not allowed, in words; empty when all is."""
        found = []
        if self.wrong > self.bars.wrong_share * self.rows:
            of = ", ".join(
                f"{n} {what}"
                for n, what in ((self.mismatched, "mismatched"), (self.missing, "missing"), (self.extra, "extra"))
                if n
            )
            worst = max(self.features, key=lambda one: one.wrong, default=None)
            example = f"; {worst.feature}: {worst.example}" if worst is not None and worst.example else ""
            allowed = f"{self.bars.wrong_share:.2%}"
            found.append(f"{self.view}: {self.wrong} of {self.rows} rows are wrong ({of}), {allowed} allowed{example}")
        if self.late > self.bars.late_share * self.rows:
            found.append(
                f"{self.view}: {self.late} of {self.rows} rows lag by more than {_hours(self.bars.lag_us)} "
                f"(at most {_hours(self.largest_lag_us)}), {self.bars.late_share:.2%} allowed"
            )
        return found


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """Logged reads of one model against the lake at the versions it names; the same log gives the same report.

    rollout_id, stage: empty where the champion's own requests are compared. unlogged: requests whose features the log
    does not hold (sampled out).
    """

    model: str
    rollout_id: str
    stage: str
    releases: list[str]
    from_us: int
    until_us: int
    requests: int
    unlogged: int
    lake: dict[str, int]
    views: list[ViewParity]

    @property
    def faults(self) -> list[str]:
        """What is not allowed, over all views."""
        return [fault for view in self.views for fault in view.faults]

    @property
    def verdict(self) -> Literal["pass", "fail", "no_data"]:
        if not any(view.rows for view in self.views):
            return "no_data"
        return "fail" if self.faults else "pass"

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.verdict == "no_data":
            return f"no logged feature values of {self.model} to compare"
        rows = sum(view.rows for view in self.views)
        late = sum(view.lagging for view in self.views)
        return "; ".join(self.faults) or (
            f"{rows:,} reads of {len(self.views)} views in {self.requests:,} requests are what the lake says, "
            f"{late:,} of them an older row, within what is allowed"
        )

    @property
    def digest(self) -> str:
        """SHA-256 over the report's canonical JSON."""
        return digest(msgspec.to_builtins(self))

    def to_json(self) -> str:
        """Canonical JSON; `from_json` makes it again."""
        return canonical_json(msgspec.to_builtins(self)).decode()


def from_json(text: str) -> ParityReport:
    """A report from its JSON. Raises `msgspec.ValidationError`."""
    return msgspec.json.decode(text, type=ParityReport)


def compare(view: str, features: Sequence[str], bars: Bars, reads: Sequence[Read]) -> ViewParity:
    """Count the reads of one view; `values` and `same` of each read are in the order of `features`."""
    counts = dict.fromkeys(("mismatched", "missing", "extra", "lagging", "late", "unread"), 0)
    tallies = [_Tally(name, bars.tolerance.get(name, 0.0), bars.tolerance_rel) for name in features]
    largest_lag_us = 0
    for read in reads:
        overdue_us = read.asked_us - read.due_us if read.due_us is not None else 0
        if read.stamp_us is None:
            if read.expected_us is None:
                continue
            if "unavailable" in read.why:
                counts["unread"] += 1
                continue
            if not (overdue_us <= bars.lag_us or "expired" in read.why or "from after" in read.why):
                counts["missing"] += 1
                continue
        elif read.same is None:
            counts["extra"] += 1
            continue
        else:
            counts["mismatched"] += sum(tally.add(read, at) for at, tally in enumerate(tallies)) > 0
        if overdue_us > 0:
            counts["lagging"] += 1
            counts["late"] += overdue_us > bars.lag_us
            largest_lag_us = max(largest_lag_us, overdue_us)
    told = [tally.told() for tally in tallies]
    return ViewParity(view=view, bars=bars, rows=len(reads), largest_lag_us=largest_lag_us, features=told, **counts)


def compare_inputs(
    names: Sequence[str], bars: Bars, sent: Mapping[str, Sequence[Value]], known: Mapping[str, Sequence[Value]]
) -> ViewParity:
    """The inputs of requests by id as sent, against those the `requests` transform gives; others are left out."""
    both = [request_id for request_id in sent if request_id in known]
    reads = [Read(request_id, 0, 0, sent[request_id], same=known[request_id]) for request_id in both]
    return compare(INPUTS, names, bars, reads)


class _Tally:
    """Counts of one feature."""

    def __init__(self, feature: str, absolute: float, relative: float) -> None:
        self.feature, self.absolute, self.relative = feature, absolute, relative
        self.compared = self.mismatched = self.missing = self.extra = 0
        self.largest, self.example = 0.0, ""

    def add(self, read: Read, at: int) -> bool:
        """Count one value; whether it is wrong."""
        online, lake = read.values[at], read.same[at] if read.same is not None else None
        self.compared += 1
        if online is None and lake is None:
            return False
        if online is None:
            self.missing += 1
        elif lake is None:
            self.extra += 1
        elif self._equal(online, lake):
            return False
        else:
            self.mismatched += 1
        self.example = self.example or f"request {read.request_id} got {online!r}, the lake says {lake!r}"
        return True

    def _equal(self, online: Value, lake: Value) -> bool:
        if isinstance(online, (int, float)) and isinstance(lake, (int, float)):
            off = abs(float(online) - float(lake))
            if math.isfinite(off):
                self.largest = max(self.largest, off)
            return off <= self.absolute + self.relative * abs(float(lake))
        return online == lake

    def told(self) -> FeatureParity:
        return FeatureParity(
            feature=self.feature,
            compared=self.compared,
            mismatched=self.mismatched,
            missing=self.missing,
            extra=self.extra,
            largest=self.largest,
            example=self.example,
        )


def _hours(us: int) -> str:
    return f"{us / 3_600_000_000:.1f} h"
