"""The first half of a request's way: it is checked, its arm is drawn, and its assignment made.

An assignment is handed to the kernel before any model is called; when it cannot be, the champion answers unlogged and
alone.
"""

from __future__ import annotations

from pipelines.contracts.assignment import payload_is_logged
from pipelines.contracts.clocks import parse_event_time, wall_us
from pipelines.contracts.errors import ContractError
from pipelines.contracts.events import Assignment, EventId
from pipelines.contracts.pii import KeyedHash
from serving import trace_context
from serving.exchange import Exchange
from serving.gateway import Gateway
from serving.inference_log import LogWriteError
from serving.oip.errors import Malformed
from serving.oip.request import InferRequest
from serving.oip.response import check_outputs
from serving.online_features.plan import NOTHING
from serving.route_table import Plan
from serving.routing import arm_of
from serving.scoring import Scorer


def begin(gateway: Gateway, plan: Plan, request: InferRequest, traceparent: str | None) -> Exchange:
    """Check the request and write its assignment. Raises a Refusal."""
    exchange = check(gateway, plan, request)
    try:
        gateway.log.write(assign(exchange, gateway.log.next_id(), traceparent))
    except LogWriteError:
        go_unlogged(exchange)
    return exchange


def check(gateway: Gateway, plan: Plan, request: InferRequest) -> Exchange:
    """The request as what is on its way. Raises a Refusal."""
    event_us = event_time(gateway, request)
    check_outputs(request, plan.champion.manifest)
    bound = plan.binder.bind(request, gateway.limits.max_rows)
    name, given = request_id(gateway, request)
    unit = _unit(gateway, plan, request, name)
    return Exchange(gateway, plan, bound, Scorer(bound, NOTHING), name, given, unit, event_us)


def event_time(gateway: Gateway, request: InferRequest) -> int:
    """The request's event time: sent under replay, the clock's under wall. Raises Malformed."""
    given = (request.parameters or {}).get("event_time")
    if gateway.settings.clock == "wall":
        if given is not None:
            raise Malformed(
                "parameters.event_time", got=given, expected="nothing", hint="This gateway runs by the wall clock."
            )
        return wall_us()
    if given is None:
        raise Malformed("parameters.event_time", got="nothing", expected="RFC 3339 text", hint="The clock is a replay.")
    try:
        return parse_event_time(given)
    except ContractError as error:
        raise Malformed("parameters.event_time", got=error.got, expected=error.expected) from None


def request_id(gateway: Gateway, request: InferRequest) -> tuple[str, bool]:
    """The client's id, or one of our own; whether the client gave it. Raises Malformed."""
    if not request.id:
        return gateway.new_request_id(), False
    max_chars = gateway.limits.max_id_chars
    if len(request.id) > max_chars:
        raise Malformed("id", got=f"{len(request.id)} characters", expected=f"at most {max_chars}")
    return request.id, True


def _unit(gateway: Gateway, plan: Plan, request: InferRequest, name: str) -> str:
    """The randomisation unit. Raises Malformed, without showing it: it may be a person."""
    unit = (request.parameters or {}).get("unit")
    if unit is None:
        return name
    max_chars = gateway.limits.max_id_chars
    if isinstance(unit, bool) or not isinstance(unit, (str, int)) or not 0 < len(str(unit)) <= max_chars:
        got = f"{type(unit).__name__} of {len(str(unit))} characters"
        raise Malformed("parameters.unit", got=got, expected=f"a text of 1 to {max_chars} characters, or an integer")
    # Whom a model of personal inputs randomises by is likely a person, too.
    keyed: KeyedHash | None = gateway.keyed if plan.privacy.personal else None
    return str(unit) if keyed is None else keyed.of(str(unit))


def assign(exchange: Exchange, event_id: EventId, traceparent: str | None) -> Assignment:
    """Draw the arm and reserve the pair's place: the assignment to be written.

    A client's id is remembered with its arm here, so that it is known to a request that comes in the same turn.
    """
    gateway, plan = exchange.gateway, exchange.plan
    route, effective, bound, name = plan.route, plan.effective, exchange.bound, exchange.request_id
    first = gateway.memory.first(route.model, name) if exchange.given else None
    exchange.arm = arm_of(effective, route.salt, exchange.unit, first)
    if effective.shadow and plan.challenger is not None and first is None:
        exchange.paired = gateway.shadow.reserve()
        if not exchange.paired:
            gateway.metrics.shed(route.model).n += 1
    # In shadow mode a request without its pair tells nothing about the challenger: it is no part of the rollout.
    compared = effective.mode != "shadow" or exchange.paired or first is not None
    exchange.rollout_id = effective.rollout_id if compared else None
    exchange.sampled = payload_is_logged(exchange.request_id, route.payload_ppm)
    if first is not None:
        gateway.metrics.retries.labels(route.model).inc()
    elif exchange.given:
        gateway.memory.remember(route.model, name, effective.rollout_id, exchange.arm)
        exchange.remembered = True
    return Assignment(
        id=event_id,
        model=route.model,
        request_id=name,
        event_us=exchange.event_us,
        wall_us=wall_us(),
        arm=exchange.arm,
        share_ppm=effective.share_ppm,
        salt=route.salt,
        unit=exchange.unit,
        mode=effective.mode if compared else "single",
        stage=route.stage,
        rollout_id=exchange.rollout_id,
        route_version=route.version,
        champion=effective.champion,
        challenger=effective.challenger if compared else None,
        rows=bound.rows,
        slices={name: str(bound.logged[name][0]) if name in bound.logged else "" for name in route.slice_inputs},
        inputs=bound.logged if exchange.sampled else {},
        sampled=exchange.sampled,
        retry=first is not None,
        paired=exchange.paired,
        traceparent=trace_context.traceparent(traceparent),
    )


def go_unlogged(exchange: Exchange) -> None:
    """What becomes of a request whose assignment could not be written."""
    exchange.logged = False
    exchange.unpair()
    exchange.arm = "champion"
    if exchange.remembered:
        exchange.gateway.memory.forget(exchange.plan.route.model, exchange.request_id)
