"""Which days of a view a changed fact touches: from the day it could first be read, as far as the windows look back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta

from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import SpecError
from pipelines.features.engine import Span
from pipelines.spec.view import ViewSpec

DAY_US = 86_400_000_000


def days_after(spec: ViewSpec, dataset: str, readable: Iterable[date], through_us: int) -> set[date]:
    """The days of stamps, up to `through_us`, that rows of a dataset reach that became readable on these days.

    A row reaches as far as the view looks back, and two steps of its cadence; one of a static dataset to the end.
    """
    last = day_of(through_us)
    reach_us = spec.look_back.us + 2 * spec.publish_every.us
    found: set[date] = set()
    for first in readable:
        end = last
        if dataset not in spec.static:
            end = min(last, day_of(start_us(first) + DAY_US + reach_us))
        found.update(between(first, end))
    return found


def between(first: date, last: date) -> Iterator[date]:
    """Every day from the first to the last."""
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)


def spans(days: Iterable[date], through_us: int) -> list[Span]:
    """The days as spans of stamps, neighbours together, none past `through_us`."""
    made: list[Span] = []
    for day in sorted(days):
        after_us, until_us = start_us(day) - 1, min(start_us(day) + DAY_US - 1, through_us)
        if until_us <= after_us:
            continue
        if made and made[-1].until_us == after_us:
            made[-1] = Span(made[-1].after_us, until_us)
        else:
            made.append(Span(after_us, until_us))
    return made


def start_us(day: date) -> int:
    """The beginning of a UTC day in microseconds."""
    return (day - date(1970, 1, 1)).days * DAY_US


def day_of(us: int) -> date:
    """The UTC day of a moment."""
    return from_us(us).date()


def range_of(first: str, last: str) -> list[date]:
    """The days of an inclusive range of ISO dates; none when both are empty. Raises SpecError."""
    if not first and not last:
        return []
    try:
        days = list(between(date.fromisoformat(first), date.fromisoformat(last or first)))
    except ValueError as error:
        raise SpecError("backfill", got=f"{first!r} to {last!r}", expected="dates like 2013-01-31") from error
    if not days:
        raise SpecError("backfill", got=f"{first} to {last}", expected="a first day that is not after the last")
    return days
