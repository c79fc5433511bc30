"""The page of a rollout: one HTML file without scripts or links to anything, for people who were not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from pipelines.rollout.charts import Series, Span, evidence_chart, interval_bar, timeline
from pipelines.rollout.planner import Need

_NEVER = 1e300
"""The bar of a metric without weight."""
_KIND = {"rolled_back": "bad", "rejected": "bad", "held": "warn", "running": "now"}


class Point(NamedTuple):
    """A look at the evidence: after so many requests (those of the backtest included), in a stage, verdicts as rows."""

    requests: int
    stage: str
    verdicts: Sequence[dict[str, Any]]


def environment(*folders: Path) -> jinja2.Environment:
    """Templates of `folders` and of this package, which holds the style that all pages share."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = lambda value: "" if value is None else f"{value:,.4g}"
    return made


def render(
    shown: dict[str, Any],
    history: Sequence[Point],
    needs: Sequence[Need],
    no_plan: str,
    decided: Sequence[str],
    parity: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> str:
    """The page. `shown` is a rollout as `slipway rollout show --json` has it, `needs` what the planner promised before
    it began (empty: `no_plan` says why), `decided` the last decision in words with what it did, `parity` the newest
    report in words, with its table's head and rows.
    """
    verdicts = [
        verdict | {"interval": _interval(verdict), "bar": _bar(verdict["threshold"])} for verdict in shown["verdicts"]
    ]
    stages = _stages(shown)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            rollout=shown,
            tiles=_tiles(shown),
            timeline=timeline(stages),
            charts=_charts(history),
            verdicts=verdicts,
            needs=[(need, _came(need, history)) for need in needs],
            no_plan=no_plan,
            decided=decided,
            parity=parity,
        )
    )


def _tiles(shown: dict[str, Any]) -> list[tuple[str, str]]:
    counts = shown["counts"]
    routed = [each["seconds_to_route"] for each in shown["decisions"] if each.get("seconds_to_route") is not None]
    return [
        ("requests in its stages", f"{sum(counts.get('assignments', {}).values()):,}"),
        ("answered by the challenger", f"{shown['exposed']:,}"),
        ("labels / KPI values", f"{counts.get('labels', 0):,} / {counts.get('kpis', 0):,}"),
        ("decisions", f"{len(shown['decisions']):,}"),
        ("decision to route, slowest", f"{max(routed):.2f} s" if routed else "-"),
    ]


def _micros(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


def _stages(shown: dict[str, Any]) -> list[Span]:
    """How long the rollout was in each stage, in event time."""
    steps = [each for each in shown["decisions"] if each["kind"] != "observed"]
    entered = [(each["next_stage"], _micros(each["event_time"])) for each in steps if each.get("next_stage")]
    if not entered:
        return []
    end = max(_micros(steps[-1]["event_time"]), shown["counts"].get("last_event_us", 0), entered[-1][1])
    until = [*(at for _, at in entered[1:]), end]
    counts, baked = shown["counts"], (shown["backtest"] or {}).get("requests", 0)
    spans = []
    for index, ((name, at), over) in enumerate(zip(entered, until, strict=True)):
        seen = baked if name == "backtest" else counts.get("assignments", {}).get(name, 0)
        served = 0 if name in ("backtest", "shadow") else counts.get("challenger", {}).get(name, 0)
        note = f"{_lasted(over - at)}, {seen:,} requests" + (f", {served:,} by the challenger" if served else "")
        last = index == len(entered) - 1
        spans.append(Span(name, at, over, note, _KIND.get(shown["status"], "ok") if last else "ok"))
    return spans


def _lasted(micros: int) -> str:
    """A duration in its two largest units."""
    seconds = micros // 1_000_000
    for size, unit, part, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {smaller}"
    return f"{seconds} s"


def _bar(threshold: float | None) -> float | None:
    return threshold if threshold is not None and 0.0 < threshold < _NEVER else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value is not None else None


def _charts(history: Sequence[Point]) -> list[tuple[str, str]]:
    """A chart a family: e-value of harm and of the proof, each with its bar."""
    marks: list[tuple[int, str]] = []
    before = 0
    for point in history:
        if not marks or marks[-1][1] != point.stage:
            marks.append((before, point.stage))  # a stage begins where the look before it was
        before = point.requests
    names = dict.fromkeys(v["metric"] for point in history for v in point.verdicts if not v["slice"])
    charts = []
    for name in names:
        rows = [(p.requests, v) for p in history for v in p.verdicts if v["metric"] == name and not v["slice"]]
        last = rows[-1][1]
        series = [
            Series(
                what,
                [(0, 0.0), *((at, math.log(max(row[key], 1e-6))) for at, row in rows)],  # a bet begins with 1
                _log(_bar(last[bar])),
                colour,
            )
            for what, key, bar, colour in (
                ("harm", "e_value", "threshold", "#dc2626"),
                ("not worse", "proof", "proof_threshold", "#059669"),
            )
            if _bar(last[bar]) is not None
        ]
        if chart := evidence_chart(f"e-values of {name}", series, marks):
            charts.append((name, chart))
    return charts


def _interval(verdict: dict[str, Any]) -> str:
    if verdict["estimate"] is None or verdict["lower"] is None or verdict["upper"] is None:
        return ""
    return interval_bar(verdict["estimate"], verdict["lower"], verdict["upper"])


def _came(need: Need, history: Sequence[Point]) -> str:
    """After how many requests the question was answered, for the reader to compare with the plan."""
    value, bar = ("proof", "proof_threshold") if need.question == "proof" else ("e_value", "threshold")
    for point in history:
        for row in point.verdicts:
            # A verdict fails by the blocks of latency too, which have an e-value of their own.
            said = 0.0 < row[bar] <= row[value] or (need.question == "harm" and row["verdict"] == "fail")
            if row["metric"] == need.metric and not row["slice"] and said:
                return f"after {point.requests:,} requests, in {point.stage}"
    return "not reached" if need.question == "proof" else "no harm found"
