"""A parity report for people: rows of a table for the rollout's page and the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.contracts.clocks import from_us
from pipelines.features.parity import ParityReport

HEAD = ("view", "feature", "rows", "mismatched", "missing", "extra", "lagging", "late", "largest difference")


def table(report: ParityReport) -> list[Sequence[str]]:
    """A row a view (its rows), then a row a feature (its values); text, in the order of `HEAD`."""
    rows: list[Sequence[str]] = []
    for view in report.views:
        counted = (view.rows, view.mismatched, view.missing, view.extra, view.lagging, view.late)
        rows.append((view.view, "", *(f"{n:,}" for n in counted), ""))
        for one in view.features:
            values = (one.compared, one.mismatched, one.missing, one.extra)
            rows.append(("", one.feature, *(f"{n:,}" for n in values), "", "", f"{one.largest:.4g}"))
    return rows


def summary(report: ParityReport) -> str:
    """One line: the verdict, what was compared, and why."""
    if not report.requests:
        return f"{report.verdict}: {report.sentence}."
    span = f"{from_us(report.from_us):%Y-%m-%d %H:%M} to {from_us(report.until_us):%Y-%m-%d %H:%M}"
    left_out = f", {report.unlogged:,} without logged features" if report.unlogged else ""
    return f"{report.verdict}: {report.requests:,} requests of {report.model}, {span}{left_out}. {report.sentence}."


def markdown(report: ParityReport) -> str:
    """The report as Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|" + "---:|" * (len(HEAD) - 2)]
    lines += [f"| {' | '.join(row)} |" for row in table(report)]
    return "\n".join([summary(report), "", *lines, ""])
