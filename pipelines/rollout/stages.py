"""The stages a rollout goes through, as its spec lists them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.errors import SpecError

Kind = Literal[
    "approval",  # no champion yet: offline gates have passed, a named person decides
    "backtest",  # the challenger has been run over logged requests; no route has changed
    "shadow",  # both score every request, the champion answers
    "canary",  # the challenger answers its share; the other arm scores in the background
    "ab",  # a fixed split without shadow scoring
    "bake",  # the challenger is champion, provisionally; the old champion is warm
]
APPROVAL = "approval"
_UNITS = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_NUMBER = re.compile(r"(\d+)(us|ms|s|m|h|d)")
_DURATION = re.compile(r"((?:\d+(?:us|ms|s|m|h|d))+) (event_time|wall)")


class Duration(msgspec.Struct, frozen=True):
    """A length of time in microseconds, on one of the two clocks."""

    us: int
    clock: Literal["event_time", "wall"] = "event_time"

    def __str__(self) -> str:
        rest, parts = self.us, []
        for unit in ("d", "h", "m", "s", "ms", "us"):
            number, rest = divmod(rest, _UNITS[unit])
            if number:
                parts.append(f"{number}{unit}")
        return f"{''.join(parts) or '0s'} {self.clock}"


def parse_duration(text: str) -> Duration:
    """`3d event_time`, `1h30m wall` as a Duration. Raises SpecError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise SpecError("duration", got=repr(text), expected="for example `3d event_time` or `1h30m wall`")
    total = sum(int(number) * _UNITS[unit] for number, unit in _NUMBER.findall(match[1]))
    clock: Literal["event_time", "wall"] = "wall" if match[2] == "wall" else "event_time"
    return Duration(total, clock)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `share_ppm` is the challenger's share in parts per million; `requests` is how many it lasts."""

    name: str
    kind: Kind
    share_ppm: int = 0
    requests: int = 0

    @property
    def exposes(self) -> bool:
        """Whether the challenger's answers reach clients in this stage."""
        return self.kind in ("canary", "ab", "bake")

    @property
    def live(self) -> bool:
        """Whether the stage judges live traffic."""
        return self.kind not in ("approval", "backtest")


def kind_of(name: str) -> Kind:
    """The kind a stage's name tells: `canary_05` is a canary. Raises SpecError for any other word."""
    word = name.partition("_")[0]
    if word not in ("backtest", "shadow", "canary", "ab", "bake"):
        raise SpecError(f"stage {name}", got=word, expected="backtest, shadow, canary_<n>, ab_<n> or bake")
    return word  # type: ignore[return-value]


def from_spec(listed: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """The stages of a list of `{name, share?, requests?}`. Raises SpecError for an order or share that cannot be."""
    stages = []
    for entry in listed:
        kind = kind_of(str(entry["name"]))
        share = round(float(entry.get("share") or 0.0) * PPM)
        if (kind in ("canary", "ab")) != (0 < share <= PPM):
            raise SpecError(
                f"stage {entry['name']}: share",
                got=entry.get("share"),
                expected="above 0 and at most 1, in canary and ab only",
            )
        stages.append(
            Stage(name=str(entry["name"]), kind=kind, share_ppm=share, requests=int(entry.get("requests") or 0))
        )
    order = [("backtest", "shadow", "canary", "ab", "bake").index(stage.kind) for stage in stages]
    names = [stage.name for stage in stages]
    if order != sorted(order) or len(set(names)) != len(names) or not stages:
        raise SpecError("stages", got=names, expected="distinct, in the order backtest, shadow, canary, ab, bake")
    return tuple(stages)
