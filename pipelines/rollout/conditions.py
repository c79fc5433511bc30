"""Conditions of leaving a stage that no traffic proves: features fresh, and read online as the lake has them.

They are measured when a stage would end, and written into the decision with their numbers, so that the decision can be
taken again from its record. Stale features mend by themselves, and requests of a fed model come in: the rollout pauses
and goes on when they are there. Wrong features, and harm to a model that is fed, do not: a person is called.
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
            return f"{self.alert}: {self.words}"
        if self.event_us - self.readable_us <= self.allowed_us:
            return ""
        return f"{self.alert}: {self.words}"

    @property
    def words(self) -> str:
        """What was measured."""
        if self.readable_us is None:
            return f"{self.view} was never readable online"
        return (
            f"{self.view} is {(self.event_us - self.readable_us) / HOUR_US:.1f} h old (readable through "
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

    @property
    def words(self) -> str:
        """What was measured."""
        return self.sentence


class FedModel(msgspec.Struct, frozen=True, kw_only=True, tag="fed_model", tag_field="condition"):
    """What the judge said of a model that is given this one's scores: its champion on its own logged requests, given
    the challenger's scores in the place of the champion's.

    `requests`: of `wanted`, those whose two scores are known; `altered` ones were sent another value than was served.
    `word`: the judge's, `metrics` and `sentence` with it. What was read: `release` on all up to `fed_seq` and
    `feeding_seq` of the two logs; `evidence` is its digest.
    """

    model: str
    release: str
    input: str
    requests: int
    wanted: int
    altered: int
    word: str
    metrics: tuple[str, ...]
    sentence: str
    evidence: str
    fed_seq: int
    feeding_seq: int
    event_us: int

    @property
    def name(self) -> str:
        return f"effect on {self.model}"

    @property
    def harms(self) -> bool:
        return self.word in ("rollback", "hold")

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty when the condition holds."""
        if self.harms:
            return f"{self.model} is harmed by its scores: {self.sentence}"
        if self.requests >= self.wanted:
            return ""
        return (
            f"{self.requests} of {self.wanted} requests of {self.model} have both scores to be tried on{self._altered}"
        )

    @property
    def words(self) -> str:
        """What was measured."""
        found = self.sentence or "nothing stands against it"
        return f"its champion given the challenger's score, {self.requests:,} requests{self._altered}: {found}"

    @property
    def _altered(self) -> str:
        return f" ({self.altered:,} more had another {self.input} than was served)" if self.altered else ""


Condition = Fresh | Parity | FedModel


def unmet(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Those that do not hold."""
    return tuple(each for each in conditions if each.fault)


def hold(conditions: tuple[Condition, ...]) -> bool:
    """Whether a person is needed; else the rollout waits for what mends by itself."""
    return any(isinstance(each, Parity) or (isinstance(each, FedModel) and each.harms) for each in unmet(conditions))


def text(conditions: tuple[Condition, ...]) -> str:
    """Everything that does not hold, in words."""
    return "; ".join(each.fault for each in unmet(conditions))
