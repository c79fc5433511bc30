"""Durations that say which clock they are measured on: `90m event_time`, `1d6h wall`."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

ClockName = Literal["event_time", "wall"]

_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "m": 60_000_000,
    "h": 3_600_000_000,
    "d": 86_400_000_000,
}
_PART = re.compile(r"(\d+)(us|ms|s|m|h|d)")
_TEXT = re.compile(r"((?:\d+(?:us|ms|s|m|h|d))+) +(event_time|wall)")
PATTERN = r"^(\d+(us|ms|s|m|h|d))+ +(event_time|wall)$"


class Duration(msgspec.Struct, frozen=True, order=True):
    """A length of time in whole microseconds on one of the two clocks. As a pydantic field it is read from text."""

    us: int
    clock: ClockName

    def __str__(self) -> str:
        """The text that parses to this value, in the fewest units."""
        left, parts = self.us, []
        for unit, size in reversed(_UNITS.items()):
            count, left = divmod(left, size)
            if count:
                parts.append(f"{count}{unit}")
        return f"{''.join(parts) or '0s'} {self.clock}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "pattern": PATTERN, "examples": ["1d6h event_time", "30s wall"]}


def parse(value: object) -> Duration:
    """The duration of a text like `1d6h event_time`. Raises ValueError saying what is missing."""
    if isinstance(value, Duration):
        return value
    if isinstance(value, str) and (match := _TEXT.fullmatch(value.strip())):
        us = sum(int(count) * _UNITS[unit] for count, unit in _PART.findall(match[1]))
        return Duration(us, match[2])  # type: ignore[arg-type]  # the pattern allows the two names only
    if isinstance(value, str) and re.fullmatch(r"(\d+(us|ms|s|m|h|d))+", value.strip()):
        text = value.strip()
        raise ValueError(f"duration '{text}' does not say which clock it is on; '{text} event_time' or '{text} wall'")
    raise ValueError(f"duration {value!r}; expected <n><us|ms|s|m|h|d> event_time|wall, for example '1d6h event_time'")


def parse_on(value: object, clock: ClockName) -> Duration:
    """As `parse`; raises ValueError for a duration on the other clock, too."""
    duration = parse(value)
    if duration.clock != clock:
        raise ValueError(f"duration '{duration}' is on the {duration.clock} clock; this one must be {clock}")
    return duration


class OnClock:
    """Annotation marker: the duration must be on this clock."""

    def __init__(self, clock: ClockName) -> None:
        self.clock = clock

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        on_clock = partial(parse_on, clock=self.clock)
        return core_schema.no_info_after_validator_function(on_clock, handler(source))


EventDuration = Annotated[Duration, OnClock("event_time")]
WallDuration = Annotated[Duration, OnClock("wall")]
