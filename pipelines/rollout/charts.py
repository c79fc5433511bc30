"""Charts as inline SVG: e-values against their bars, stages over time, an effect with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 210
LEFT, RIGHT, TOP, BOTTOM = 46, 150, 12, 28
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2", "#be185d", "#4d7c0f")


@dataclass(frozen=True, slots=True)
class Series:
    """One e-value (natural log of it) by number of requests, and the log of the bar it has to pass."""

    name: str
    points: Sequence[tuple[int, float]]
    bar: float | None
    colour: str = ""


def _ticks(low: float, high: float) -> list[int]:
    step = max(1, math.ceil((high - low) / 5))
    return list(range(math.ceil(low), math.floor(high) + 1, step))


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights as near to the `wanted` ones as lines `gap` apart between `low` and `high` can be, each in its place."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed, above, below = [0.0] * len(wanted), low - gap, high - gap * (len(wanted) - 1)
    for index in order:
        placed[index] = above = min(max(wanted[index], above + gap), below)
        below += gap
    return placed


def evidence_chart(title: str, series: Sequence[Series], stages: Sequence[tuple[int, str]], width: int = 640) -> str:
    """An SVG of log10 e-values against requests; `stages` are (first request, name) marks. Empty without points."""
    ten = math.log(10)
    shown = [(s, [(x, max(-4.0, min(12.0, y / ten))) for x, y in s.points]) for s in series if s.points]
    if not shown:
        return ""
    xs = [x for _, points in shown for x, _ in points]
    ys = [y for _, points in shown for _, y in points] + [s.bar / ten for s, _ in shown if s.bar is not None]
    x_high, y_low, y_high = max(xs) or 1, min(-1.0, *ys), max(2.5, *ys) * 1.05

    def px(x: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * x / x_high

    def py(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (y_high - y) / (y_high - y_low)

    parts = [
        f'<svg viewBox="0 0 {width} {HEIGHT}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
    ]
    for tick in _ticks(y_low, y_high):
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}" class="grid"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{py(tick) + 4:.1f}" class="tick" text-anchor="end">'
            f'10<tspan dy="-4" font-size="8">{tick}</tspan></text>'
        )
    free = 0.0
    for at, name in stages:
        parts.append(f'<line x1="{px(at):.1f}" x2="{px(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="stage"/>')
        if px(at) < free:
            continue  # a short stage: its name would lie on its neighbour's
        free = px(at) + 6 * len(name)
        parts.append(f'<text x="{px(at) + 3:.1f}" y="{HEIGHT - BOTTOM - 4}" class="tick">{escape(name)}</text>')
    ends = [py(points[-1][1]) + 4 for _, points in shown]
    places = _apart(ends, 11, TOP + 8, HEIGHT - 4)
    for index, (one, points) in enumerate(shown):
        colour = one.colour or COLOURS[index % len(COLOURS)]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if one.bar is not None:
            y = py(one.bar / ten)
            parts.append(
                f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" '
                'stroke-dasharray="4 4" opacity=".7"/>'
            )
        at_y, name = f"{places[index]:.1f}", escape(one.name)
        parts.append(f'<text x="{width - RIGHT + 6}" y="{at_y}" fill="{colour}" font-size="10.5">{name}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}" class="tick">0</text>')
    parts.append(
        f'<text x="{width - RIGHT}" y="{HEIGHT - 8}" class="tick" text-anchor="end">{x_high:,} requests</text>'
    )
    parts.append("</svg>")
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Span:
    """A stage's stay: from and until (microseconds), what is written beside it, and the class that colours it."""

    name: str
    from_us: int
    until_us: int
    note: str
    kind: str


def timeline(spans: Sequence[Span], width: int = 1000) -> str:
    """An SVG with one line a stage, in proportion to the time it took. Empty without spans."""
    if not spans:
        return ""
    left, right, row = 110, 330, 24
    begin, end = min(span.from_us for span in spans), max(span.until_us for span in spans)
    scale = (width - left - right) / max(end - begin, 1)
    size = f"0 0 {width} {row * len(spans) + 4}"
    parts = [
        f'<svg viewBox="{size}" class="wide" role="img" aria-label="stages over time" xmlns="http://www.w3.org/2000/svg">'
    ]
    for index, span in enumerate(spans):
        x, y = left + (span.from_us - begin) * scale, index * row + 4
        long = max((span.until_us - span.from_us) * scale, 2.0)
        parts.append(f'<text x="{left - 8}" y="{y + 13}" class="tick" text-anchor="end">{escape(span.name)}</text>')
        parts.append(f'<rect x="{x:.1f}" y="{y}" width="{long:.1f}" height="{row - 7}" rx="3" class="{span.kind}"/>')
        parts.append(f'<text x="{x + long + 7:.1f}" y="{y + 13}" class="tick">{escape(span.note)}</text>')
    return "".join([*parts, "</svg>"])


def interval_bar(estimate: float, lower: float, upper: float, width: int = 180) -> str:
    """An SVG of an effect with its interval around zero, on a scale of its own."""
    reach = max(abs(lower), abs(upper), abs(estimate)) or 1.0
    middle, half = width / 2, width / 2 - 6

    def px(value: float) -> float:
        return middle + half * max(-1.0, min(1.0, value / reach))

    return (
        f'<svg viewBox="0 0 {width} 18" class="interval" role="img" '
        f'aria-label="{estimate:.4g}, between {lower:.4g} and {upper:.4g}" xmlns="http://www.w3.org/2000/svg">'
        f'<line x1="{middle}" x2="{middle}" y1="1" y2="17" class="stage"/>'
        f'<line x1="{px(lower):.1f}" x2="{px(upper):.1f}" y1="9" y2="9" class="reach"/>'
        f'<circle cx="{px(estimate):.1f}" cy="9" r="3.6" class="point"/></svg>'
    )
