"""Rollback by hand: the same override as the circuit breaker's, with a name. Works with Airflow and database down."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.oip.errors import Conflict, Malformed, Unavailable
from serving.route_table import Plan

_PATIENCE_S = 2.0
_Words = Annotated[str, msgspec.Meta(max_length=1000)]


class RollbackBody(msgspec.Struct):
    """Who and why; both go into the override event, and with it to every worker and into the record."""

    reason: _Words = "rollback by hand"
    actor: _Words = "operator"


_decoder = msgspec.json.Decoder(RollbackBody)


async def roll_back(gateway: Gateway, plan: Plan, body: bytes) -> dict[str, Any]:
    """Reduce the model's exposure; returns the override once it is durable. Asking again changes nothing.

    Raises Conflict when the route has neither a challenger nor a fallback.
    """
    try:
        asked = _decoder.decode(body) if body.strip() else RollbackBody()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed("body", got=str(error), expected='{"reason"?, "actor"?} or nothing') from None
    route = plan.route
    if plan.effective.override is not None:
        if not await gateway.is_durable(route.model, _PATIENCE_S):
            raise _not_durable("an earlier call that is not written yet")
        return {"model": route.model, "override": plan.effective.override, "serving": plan.effective.champion}
    if route.challenger is None and route.fallback is None:
        raise Conflict(
            f"rollback of {route.model}",
            got="a route with neither challenger nor fallback",
            expected="something to go back to",
        )
    held = gateway.override(plan, asked.reason, asked.actor)
    try:
        await gateway.persist(held)
    except (OSError, LogWriteError) as error:
        gateway.persist_later(held)
        raise _not_durable(str(error)) from None
    serving = gateway.table.plans[route.model].effective.champion
    return {"model": route.model, "override": str(held.event.id), "action": held.event.action, "serving": serving}


def _not_durable(got: str) -> Unavailable:
    hint = "It is in force in this worker, which goes on trying. Make room, and send the call again."
    return Unavailable("override", got=got, expected="a durable write", hint=hint)
