"""Frames that no event can be made of: they are set aside whole, with the reason, and the log goes on without them.

Quarantine is for good: what was set aside is never numbered later, so evidence folded again is the same. It is counted
instead: an answer in quarantine is a lost response of its arm, and an assignment there uses up its rollout's number,
which makes it a lost assignment (`seq_gaps.py`), wherever the payload can still be read so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pipelines.contracts import events
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import Event, EventId
from pipelines.contracts.segments import Frame
from pipelines.contracts.streams import StreamKey

TABLE = "inference/quarantine"
"""The table in the lake: the event id as its frame has it, the payload as text and as it was, the reason."""
_SHOWN = 3
_LONGEST = 300


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A frame that is no event. `claims`: what its payload says of itself, empty where it cannot be read at all. Its
    payload is None where it may not be kept.
    """

    id: EventId
    payload: bytes | None
    reason: str
    claims: dict[Any, Any]

    @property
    def wall_us(self) -> int:
        """Unknown: in the order of the log it keeps its place within its stream."""
        return 0

    def claim(self, name: str) -> str:
        """What the payload says under a name; empty for nothing, or no text."""
        value = self.claims.get(name)
        return value if isinstance(value, str) else ""


def decode(keys: Sequence[StreamKey], parts: Sequence[Sequence[Frame]]) -> list[list[Event | Refused]]:
    """The events of each part's frames, in their order, with `Refused` in the place of what is none; `keys` are the
    streams that the parts belong to.
    """
    return [[_event(key, frame) for frame in frames] for key, frames in zip(keys, parts, strict=True)]


def _event(key: StreamKey, frame: Frame) -> Event | Refused:
    where = EventId(*key, frame.n)
    try:
        event = events.decode(frame.payload)
    except ContractError as error:
        return _refused(where, frame.payload, f"no event: {error.got}")
    if event.schema > events.SCHEMA:
        reason = f"schema {event.schema}, and this collector reads {events.SCHEMA}: upgrade it before the gateways"
        return _refused(where, frame.payload, reason)
    if event.id != where:
        return _refused(where, frame.payload, f"it says that it is event {event.id}")
    return event


def _refused(where: EventId, payload: bytes, reason: str) -> Refused:
    try:
        said = msgspec.msgpack.decode(payload)
    except (ValueError, TypeError, RecursionError):  # no MessagePack, texts that are none, keys that cannot be keys
        said = None
    claims = said if isinstance(said, dict) else {}
    return Refused(id=where, payload=payload, reason=reason[:_LONGEST], claims=claims)


def summary(reasons: Iterable[str]) -> str:
    """The reasons in words, the most frequent first."""
    counted = Counter(reasons)
    told = [f"{count} x {reason}" for reason, count in counted.most_common(_SHOWN)]
    return "; ".join([*told, f"and {len(counted) - _SHOWN} other reasons"] if len(counted) > _SHOWN else told)
