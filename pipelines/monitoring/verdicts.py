"""What is said about each monitored column: pass, fail or no_data, with the numbers compared and a sentence.

A shift counts when it is large AND not chance: at a gateway's volumes every test rejects for shifts nobody would act
on, and an index without a test fires on small samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from pipelines.monitoring import buckets, chi_squared, ks, performance, psi
from pipelines.monitoring.columns import Category, Column, Numbers

Kind = Literal["feature", "score", "label", "performance"]
Word = Literal["pass", "fail", "no_data"]


class Bars(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be crossed. `label_change`: the least change of a label's share (classes), absolute."""

    psi: float = 0.2
    p_value: float = 0.001
    min_rows: int = 500
    label_change: float = 0.1


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison. `reference` and `current` are means or metrics of the windows (None for categories)."""

    name: str
    kind: Kind
    test: str
    verdict: Word
    report_only: bool = False
    reference_rows: int
    current_rows: int
    reference: float | None = None
    current: float | None = None
    psi: float | None = None
    p_value: float | None = None
    sentence: str

    @property
    def asks(self) -> bool:
        """Whether this alone is a reason to train again."""
        return self.verdict == "fail" and not self.report_only


def of_column(column: Column, bars: Bars, *, kind: Kind = "feature", report_only: bool = False) -> Verdict:
    """A feature's or the score's distribution: PSI for the size, Kolmogorov-Smirnov or chi-squared for chance."""
    rows = (len(column.reference), len(column.current))
    numeric = column.is_numeric
    test = "ks" if numeric else "chi_squared"
    if min(rows) < bars.min_rows:
        return _no_data(column.name, kind, test, rows, bars, report_only)
    if numeric:
        reference, current = np.asarray(column.reference), np.asarray(column.current)
        size = psi.of_numbers(reference, current)
        known = int((~np.isnan(reference)).sum()), int((~np.isnan(current)).sum())
        chance = ks.p_value(ks.statistic(reference, current), *known)
        if not math.isfinite(chance):
            chance = _missing(reference, current)
        means = _mean(reference), _mean(current)
    else:
        samples = buckets.frequent(column.reference, column.current)  # type: ignore[arg-type]  # no numbers: see is_numeric
        size, chance = psi.of_categories(*samples), chi_squared.test(*samples).p_value
        means = None, None
    failed = size >= bars.psi and chance < bars.p_value
    return Verdict(
        name=column.name,
        kind=kind,
        test=test,
        verdict="fail" if failed else "pass",
        report_only=report_only,
        reference_rows=rows[0],
        current_rows=rows[1],
        reference=means[0],
        current=means[1],
        psi=size,
        p_value=chance,
        sentence=f"PSI {size:.3f} (bar {bars.psi:g}), p-value {chance:.2g} (bar {bars.p_value:g})",
    )


def of_label(reference: Numbers, current: Numbers, task: str, bars: Bars) -> Verdict:
    """The labels: the share of positives for classes, the whole distribution for numbers."""
    if task != "binary":
        return of_column(Column("label", reference, current), bars, kind="label")
    rows = (reference.size, current.size)
    if min(rows) < bars.min_rows:
        return _no_data("label", "label", "chi_squared", rows, bars, report_only=False)
    positive = _classes(reference), _classes(current)
    shares = float(reference.mean()), float(current.mean())
    change = shares[1] - shares[0]
    chance = chi_squared.test(*positive).p_value
    failed = abs(change) >= bars.label_change and chance < bars.p_value
    return Verdict(
        name="label",
        kind="label",
        test="chi_squared",
        verdict="fail" if failed else "pass",
        reference_rows=rows[0],
        current_rows=rows[1],
        reference=shares[0],
        current=shares[1],
        psi=psi.of_categories(*positive),
        p_value=chance,
        sentence=(
            f"share {shares[0]:.3f} -> {shares[1]:.3f}: change {change:+.3f} (bar {bars.label_change:g}), "
            f"p-value {chance:.2g} (bar {bars.p_value:g})"
        ),
    )


def of_performance(metric: str, reference: Numbers, current: Numbers, max_worse_rel: float, bars: Bars) -> Verdict:
    """The metric on matured labels, from losses a row: worse by more than allowed, and not by chance."""
    rows = (reference.size, current.size)
    if min(rows) < bars.min_rows:
        return _no_data(metric, "performance", "welch", rows, bars, report_only=False)
    values = performance.value(metric, reference), performance.value(metric, current)
    worse = values[1] / values[0] - 1 if values[0] else math.inf * (values[1] > 0)
    chance = performance.p_value_worse(reference, current)
    failed = worse > max_worse_rel and chance < bars.p_value
    return Verdict(
        name=metric,
        kind="performance",
        test="welch",
        verdict="fail" if failed else "pass",
        reference_rows=rows[0],
        current_rows=rows[1],
        reference=values[0],
        current=values[1],
        p_value=chance,
        sentence=(
            f"{values[0]:.4f} -> {values[1]:.4f}: {worse:+.1%} (bar {max_worse_rel:+.1%}), "
            f"p-value {chance:.2g} (bar {bars.p_value:g})"
        ),
    )


def _no_data(name: str, kind: Kind, test: str, rows: tuple[int, int], bars: Bars, report_only: bool) -> Verdict:
    return Verdict(
        name=name,
        kind=kind,
        test=test,
        verdict="no_data",
        report_only=report_only,
        reference_rows=rows[0],
        current_rows=rows[1],
        sentence=f"{rows[0]} reference and {rows[1]} current rows (least {bars.min_rows})",
    )


def _classes(labels: Numbers) -> Sequence[Category]:
    return [bool(value) for value in labels > 0.5]


def _missing(reference: Numbers, current: Numbers) -> float:
    """A column that is wholly missing in one window: whether its being missing is new."""
    return chi_squared.test(
        [bool(value) for value in np.isnan(reference)], [bool(value) for value in np.isnan(current)]
    ).p_value


def _mean(values: Numbers) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
