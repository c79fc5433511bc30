"""The stages a rollout goes through, as its spec lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.errors import SpecError
from pipelines.spec.durations import Duration, parse

Kind = Literal[
    "approval",  # no champion yet: offline gates have passed, a named person decides
    "backtest",  # the challenger has been run over logged requests; no route has changed
    "shadow",  # both score every request, the champion answers
    "canary",  # the challenger answers its share; the other arm scores in the background
    "ab",  # a fixed split without shadow scoring
    "bake",  # the challenger is champion, provisionally; the old champion is warm
]
APPROVAL = "approval"
_ORDER: tuple[tuple[Kind, ...], ...] = (("backtest",), ("shadow",), ("canary", "ab"), ("bake",))


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `share_ppm` is the challenger's share in parts per million; `requests` is how many it lasts.

    It lasts at least `min_event_time`; when `max_wait` is over without a decision, a person is asked.
    """

    name: str
    kind: Kind
    share_ppm: int = 0
    requests: int = 0
    min_event_time: Duration | None = None
    max_wait: Duration | None = None

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
    for kinds in _ORDER:
        for kind in kinds:
            if word == kind:
                return kind
    raise SpecError(f"stage {name}", got=word, expected="backtest, shadow, canary_<n>, ab_<n> or bake")


def from_spec(listed: Sequence[Mapping[str, Any]], max_wait: Duration | None = None) -> tuple[Stage, ...]:
    """The stages of a list of `{name, share?, requests?, min_event_time?, max_wait?}`; `max_wait` is the default.

    Raises SpecError for a share or an order that cannot be.
    """
    stages = []
    for entry in listed:
        kind = kind_of(str(entry["name"]))
        share = round(float(entry.get("share") or 0.0) * PPM)
        if (kind in ("canary", "ab")) != (0 < share <= PPM):
            expected = "above 0 and at most 1, in canary and ab only"
            raise SpecError(f"stage {entry['name']}: share", got=entry.get("share"), expected=expected)
        stages.append(
            Stage(
                name=str(entry["name"]),
                kind=kind,
                share_ppm=share,
                requests=int(entry.get("requests") or 0),
                min_event_time=_duration(entry.get("min_event_time")),
                max_wait=_duration(entry.get("max_wait")) or max_wait,
            )
        )
    ranks = [next(rank for rank, kinds in enumerate(_ORDER) if stage.kind in kinds) for stage in stages]
    names = [stage.name for stage in stages]
    if ranks != sorted(ranks) or len(set(names)) != len(names) or not stages:
        raise SpecError("stages", got=names, expected="distinct, in the order backtest, shadow, canary or ab, bake")
    return tuple(stages)


def _duration(value: object) -> Duration | None:
    return parse(value) if value else None
