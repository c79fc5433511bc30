"""The route: the one document the gateway follows for a model.

Orchestration writes `route(model, version, document)`; the gateway only reads it.
`version` grows by one for each change.
The share is the challenger's probability of answering; `shadow` says that both releases score every request, the one
that does not answer after the answer has left.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from pipelines.contracts.assignment import PPM
from pipelines.contracts.errors import ContractError

SCHEMA = "slipway-route/1"
CHANNEL = "slipway_route"
"""On Postgres, each new route is told here (`NOTIFY`, when its transaction commits); the payload is its model."""

Mode = Literal["single", "shadow", "split"]


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """Bound of the gateway's own circuit breaker, for the challenger alone; while it bakes it is champion.

    Trips when, of the last `window` challenger calls, at least `failures` failed (error, timeout, invalid value).
    """

    window: int = 100
    failures: int = 20
    timeout_ms: int = 1000


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway does with requests of `model`, from the moment it reads this on."""

    schema: str = SCHEMA
    model: str
    version: int
    mode: Mode
    champion: str
    challenger: str | None = None
    fallback: str | None = None
    rollout_id: str | None = None
    decision_id: str | None = None
    stage: str = "live"
    share_ppm: int = 0
    shadow: bool = False
    salt: str = ""
    clears_overrides: list[str] = []
    breaker: Breaker = Breaker()
    slice_inputs: list[str] = []
    payload_ppm: int = PPM
    """Of how many requests the inputs and features are logged, in parts per million; every event is written."""


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Route)


def check(route: Route) -> Route:
    """The same route when it is consistent. Raises ContractError naming the field that is not."""
    if route.schema != SCHEMA:
        raise ContractError("route schema", got=route.schema, expected=SCHEMA, hint="Upgrade the older side.")
    if not 0 <= route.share_ppm <= PPM:
        raise ContractError("route share_ppm", got=route.share_ppm, expected="0..1000000")
    if not 0 <= route.payload_ppm <= PPM:
        raise ContractError("route payload_ppm", got=route.payload_ppm, expected="0..1000000")
    if route.mode == "single" and (route.share_ppm or route.challenger):
        raise ContractError(
            "route mode single", got=f"challenger={route.challenger}", expected="no challenger, share 0"
        )
    if route.mode == "shadow" and (route.share_ppm or not route.challenger or not route.shadow):
        raise ContractError(
            "route mode shadow", got=f"share_ppm={route.share_ppm}", expected="a challenger, shadow on, share 0"
        )
    if route.mode == "split" and not (route.challenger and route.rollout_id and route.salt):
        raise ContractError(
            "route mode split", got=f"challenger={route.challenger}", expected="challenger, rollout_id and salt"
        )
    return route


def encode(route: Route) -> str:
    """The route as JSON with sorted keys."""
    return _encoder.encode(check(route)).decode()


def decode(document: str | bytes) -> Route:
    """The route in `document`. Raises ContractError for anything else."""
    try:
        return check(_decoder.decode(document))
    except msgspec.MsgspecError as error:
        raise ContractError("route document", got=str(error), expected=SCHEMA) from error
