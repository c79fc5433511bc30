"""Conditions of leaving a stage that no traffic proves: features fresh, and read online as the lake has them.

They are measured when a stage would end, and written into the decision with their numbers, so that the decision can be
taken again from its record. Stale features mend by themselves: the rollout pauses and goes on when they are fresh.
Wrong ones do not: a person is called.
"""

from __future__ import annotations

import msgspec

from pipelines.contracts.clocks import from_us

HOUR_US = 3_600_000_000


class Fresh(msgspec.Struct, frozen=True, kw_only=True, tag="freshness", tag_field="condition"):
    """How old a view of the challenger was. Times are event time in microseconds; None: never readable."""

    view: str
    readable_us: int | None
    event_us: int
    allowed_us: int
    alert: str

    @property
    def name(self) -> str:
        return f"freshness of {self.view}"

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty when the condition holds."""
        if self.readable_us is None:
            return f"{self.alert}: {self.view} was never readable online"
        age_us = self.event_us - self.readable_us
        if age_us <= self.allowed_us:
            return ""
        return (
            f"{self.alert}: {self.view} is {age_us / HOUR_US:.1f} h old (readable through "
            f"{from_us(self.readable_us):%Y-%m-%d %H:%M}), {self.allowed_us / HOUR_US:.1f} h allowed"
        )


class Parity(msgspec.Struct, frozen=True, kw_only=True, tag="parity", tag_field="condition"):
    """What the stage's parity report said: its digest, verdict and sentence. blocks: whether that may hold it."""

    report: str
    verdict: str
    sentence: str
    blocks: bool

    @property
    def name(self) -> str:
        return "parity"

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty when the condition holds."""
        return f"features differ from the lake: {self.sentence}" if self.blocks and self.verdict != "pass" else ""


Condition = Fresh | Parity


def unmet(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Those that do not hold."""
    return tuple(each for each in conditions if each.fault)


def hold(conditions: tuple[Condition, ...]) -> bool:
    """Whether a person is needed; else the rollout waits for what mends by itself."""
    return any(isinstance(each, Parity) for each in unmet(conditions))


def text(conditions: tuple[Condition, ...]) -> str:
    """Everything that does not hold, in words."""
    return "; ".join(each.fault for each in unmet(conditions))
