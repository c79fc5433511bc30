"""Labels and KPI values: durable before they are acknowledged. Repeats, early and late ones are all kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from pipelines.contracts.clocks import LATEST_US, MICROS, parse_event_time, wall_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import UNNAMED, Event, EventId, Kpi, Label
from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.oip.errors import Malformed, TooLarge, Unavailable

_LAST_ROW = 2**31 - 1
"""What the lake's column holds; no request has as many rows."""
_AHEAD_US = 300 * MICROS
"""How far another machine's clock may be ahead of this one."""
_AT_ONCE = 500
"""Events that are written before others have a turn: ten thousand would hold them up for a tenth of a second."""


class LabelItem(msgspec.Struct):
    """One label as sent: the request's id, the row in its batch, the truth, and when it held (event time)."""

    id: str
    value: float | bool
    row: int = 0
    at: str | int | None = None


class LabelsBody(msgspec.Struct):
    """The body of a labels call."""

    labels: list[LabelItem]


class KpiItem(msgspec.Struct):
    """One business value as sent."""

    id: str
    value: float | bool
    name: str = UNNAMED
    at: str | int | None = None


class KpisBody(msgspec.Struct):
    """The body of a kpis call."""

    kpis: list[KpiItem]


_labels = msgspec.json.Decoder(LabelsBody)
_kpis = msgspec.json.Decoder(KpisBody)


async def take_labels(gateway: Gateway, model: str, body: bytes) -> int:
    """Append the labels and return their number once they are on the disk. Raises a Refusal; then any may be missing.

    A call that failed can be repeated as it is: equal labels of one (id, row) count once.
    """
    items = _decode(_labels, body, '{"labels": [{"id", "row"?, "value", "at"?}]}').labels
    now, latest = _now(gateway, items), _latest(gateway)
    makes: list[Callable[[EventId], Event]] = []
    for index, item in enumerate(items):
        if not 0 <= item.row <= _LAST_ROW:
            raise Malformed(f"labels[{index}].row", got=item.row, expected=f"0 to {_LAST_ROW}")
        makes.append(_label_event(model, item, _at(f"labels[{index}].at", item.at, now, latest)))
    return await _write(gateway, model, "label", makes)


async def take_kpis(gateway: Gateway, model: str, body: bytes) -> int:
    """The same for KPI values; equal values of one (id, name) count once."""
    items = _decode(_kpis, body, '{"kpis": [{"id", "name"?, "value", "at"?}]}').kpis
    now, latest = _now(gateway, items), _latest(gateway)
    longest = gateway.limits.max_id_chars
    for index, item in enumerate(items):
        if not 0 < len(item.name) <= longest:
            got = f"{len(item.name)} characters"
            raise Malformed(f"kpis[{index}].name", got=got, expected=f"1 to {longest} characters")
    makes: list[Callable[[EventId], Event]] = [
        _kpi_event(model, item, _at(f"kpis[{index}].at", item.at, now, latest)) for index, item in enumerate(items)
    ]
    return await _write(gateway, model, "kpi", makes)


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes, expected: str) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Malformed("body", got=str(error), expected=expected) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("body", got=f"no JSON: {error}", expected=expected) from None


def _now(gateway: Gateway, items: list[Any]) -> int:
    """Event now, where some item does not say when it held. Raises the refusal of an empty or too long list."""
    if not items:
        raise Malformed("body", got="an empty list", expected="at least one item")
    if len(items) > gateway.limits.max_labels:
        raise TooLarge("items in one call", got=len(items), expected=f"at most {gateway.limits.max_labels}")
    for item in items:
        if not item.id or len(item.id) > gateway.limits.max_id_chars:
            raise Malformed("id", got=item.id[:80], expected=f"1 to {gateway.limits.max_id_chars} characters")
    if all(item.at is not None for item in items):
        return 0
    try:
        return gateway.clock.event_now_us()
    except ContractError as error:
        raise Malformed(
            "at", got="nothing, and there is no event now", expected="RFC 3339 text", hint=str(error)
        ) from None


def _latest(gateway: Gateway) -> int:
    """The latest moment that what comes now can have held at: what is ahead of it would make every label mature."""
    return wall_us() + _AHEAD_US if gateway.clock.mode == "wall" else LATEST_US


def _at(where: str, at: str | int | None, now: int, latest: int) -> int:
    if at is None:
        return now
    try:
        found = parse_event_time(at)
    except ContractError as error:
        raise Malformed(where, got=error.got, expected=error.expected) from None
    if found > latest:
        raise Malformed(where, got=at, expected="no moment to come", hint="Integers are microseconds since 1970.")
    return found


def _label_event(model: str, item: LabelItem, event_us: int) -> Callable[[EventId], Event]:
    return lambda event_id: Label(
        id=event_id,
        model=model,
        request_id=item.id,
        row=item.row,
        value=float(item.value),
        event_us=event_us,
        wall_us=wall_us(),
    )


def _kpi_event(model: str, item: KpiItem, event_us: int) -> Callable[[EventId], Event]:
    return lambda event_id: Kpi(
        id=event_id,
        model=model,
        request_id=item.id,
        name=item.name,
        value=float(item.value),
        event_us=event_us,
        wall_us=wall_us(),
    )


async def _write(gateway: Gateway, model: str, kind: str, makes: list[Callable[[EventId], Event]]) -> int:
    try:
        for first in range(0, len(makes), _AT_ONCE):
            some = makes[first : first + _AT_ONCE]
            gateway.log.write_all([make(event_id) for make, event_id in zip(some, gateway.log.ids(), strict=False)])
            await asyncio.sleep(0)  # requests that have come meanwhile are answered
        await gateway.log.durable()
    except LogWriteError as error:
        raise Unavailable(
            "inference log", got=error.got, expected=error.expected, hint="Send the call again."
        ) from None
    gateway.metrics.feedback.labels(model, kind).inc(len(makes))
    return len(makes)
