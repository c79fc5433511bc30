"""The inference log's event types and their wire form.

One event is one MessagePack map with a `kind` tag (msgspec tagged union). Both environments import this file;
`tests/contract/vectors/events.json` holds published vectors. Times are integer microseconds since the epoch, UTC.

Two clocks (design section 3): `event_us` is event time (when the fact holds: the driver's tick in replay, the request's
arrival under wall), `wall_us` is the machine's clock and measures latency and deadlines only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipelines.contracts.clocks import EARLIEST_US, LATEST_US
from pipelines.contracts.errors import ContractError

SCHEMA = 1

# What every store on the way holds: a Delta column, a folder's name, a key of the control database. The gateway writes
# nothing else, and `decode` refuses it.
Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Micros = Annotated[int, Meta(ge=EARLIEST_US, le=LATEST_US)]
ModelName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,128}\Z")]
RolloutId = Annotated[str, Meta(pattern=r"\A[^\x00]{0,255}\Z")]

UNNAMED = "kpi"
"""The name of a KPI value that came without one."""


def metric_by_name(kpis: Sequence[str]) -> dict[str, str]:
    """By the name of a KPI value, which of a policy's mean metrics it counts for: the one of its name; an unnamed one
    where there is but one.
    """
    unnamed = {UNNAMED: kpis[0]} if len(kpis) == 1 else {}
    return unnamed | {name: name for name in kpis}


Arm = Literal["champion", "challenger"]
ARMS: tuple[Arm, Arm] = ("champion", "challenger")
OTHER: dict[Arm, Arm] = {"champion": "challenger", "challenger": "champion"}


class EventId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """(gateway, worker, epoch, n): unique, and gapless in `n` per worker epoch.

    `epoch` is new for every process start of a worker; `n` counts from 0 within it over all kinds and models.
    """

    gateway: str
    worker: Int32
    epoch: Int64
    n: Int64

    def __str__(self) -> str:
        return f"{self.gateway}/{self.worker}/{self.epoch}/{self.n}"


class FeatureRead(msgspec.Struct, frozen=True, array_like=True):
    """One feature view as read for one request: which version, when its row held, the values in the view's order.

    `values` has one list a feature, in `names` order, each as long as the batch; None where the row is missing.
    `event_us` has one entry a row of the batch (None: no row online).
    """

    view: str
    names: list[str]
    event_us: list[int | None]
    values: list[list[float | int | str | bool | None]]


class Assignment(msgspec.Struct, frozen=True, tag="assignment", tag_field="kind", kw_only=True, omit_defaults=True):
    """Written before any model is called: which arm this request drew, and what it asked.

    One request is one assignment: all its rows share the arm. In shadow and single mode `arm` is `champion`.
    `retry` is set when the client repeated an id: the request gets its first arm and counts as a retry.
    `paired` promises that the arm not drawn will score this request too, after the answer has left; without it (shadow
    queue full, no shadow on the route) only the drawn arm's response is owed.
    Without `sampled` the inputs were not logged (`Route.payload_ppm`): `inputs` is empty, and says nothing.
    """

    id: EventId
    schema: int = SCHEMA
    model: ModelName
    request_id: str
    event_us: Micros
    wall_us: Micros
    arm: Arm
    share_ppm: Int32
    salt: str
    unit: str
    mode: str
    stage: str
    rollout_id: RolloutId | None
    route_version: Int64
    champion: str
    challenger: str | None = None
    rows: Int32 = 1
    slices: dict[str, str] = {}
    inputs: dict[str, list[float | int | str | bool | None]] = {}
    retry: bool = False
    paired: bool = False
    traceparent: str | None = None
    sampled: bool = True


NOT_COMPARED = -1
"""`Response.beside_us` of a second arm whose time says nothing beside that of the other arm."""


class Response(msgspec.Struct, frozen=True, tag="response", tag_field="kind", kw_only=True, omit_defaults=True):
    """One arm's outcome for one request. `served` tells whether the client got this one as its answer.

    `raw` and `score` hold one value a row (before and after post-processing); empty when `status` is `error`.
    A served answer of the champion in place of a failed challenger has `fallback=True`, and the challenger's own
    Response (status error) is written too, with served=False.
    Without `sampled` the features were not logged, as the assignment's inputs.
    `beside_us`, of a second arm (`shadow`): what the other arm took for the same request when both were scored beside
    each other, by the clock of `latency_us`. Evidence compares these two, and not what the client's answer took. None:
    was not measured (older logs, failed, no such stage). `NOT_COMPARED`: the request was scored in company, and another
    one's pair has the times of all of it, which are one observation; or the other arm could not be scored there.
    """

    id: EventId
    schema: int = SCHEMA
    model: ModelName
    request_id: str
    arm: Arm
    release: str
    rollout_id: RolloutId | None
    event_us: Micros
    wall_us: Micros
    status: Literal["ok", "error", "invalid"]
    served: bool
    shadow: bool = False
    fallback: bool = False
    raw: list[float] = []
    score: list[float] = []
    outputs: dict[str, list[float | int | str | bool | None]] = {}
    latency_us: Int64 = 0
    beside_us: Int64 | None = None
    features_us: Int64 = 0
    model_us: Int64 = 0
    features: list[FeatureRead] = []
    degraded: list[str] = []
    error: str = ""
    sampled: bool = True


class Label(msgspec.Struct, frozen=True, tag="label", tag_field="kind", kw_only=True, omit_defaults=True):
    """A truth for one row of one request, as it arrived. All are kept; the collector counts repeats."""

    id: EventId
    schema: int = SCHEMA
    model: ModelName
    request_id: str
    row: Int32 = 0
    value: float
    event_us: Micros
    wall_us: Micros


class Kpi(msgspec.Struct, frozen=True, tag="kpi", tag_field="kind", kw_only=True, omit_defaults=True):
    """One value of one business measure for one request."""

    id: EventId
    schema: int = SCHEMA
    model: ModelName
    request_id: str
    name: str = UNNAMED
    value: float
    event_us: Micros
    wall_us: Micros


class Override(msgspec.Struct, frozen=True, tag="override", tag_field="kind", kw_only=True, omit_defaults=True):
    """The gateway reduced exposure on its own (breaker) or by hand (rollback call). It never raises exposure.

    Outranks every route of `rollout_id` until a route's `clears_overrides` names it: then a decision has dealt with it.
    `withdrawn` is the release that lost its requests ("" in events of older gateways).
    """

    id: EventId
    schema: int = SCHEMA
    model: ModelName
    rollout_id: RolloutId | None
    route_version: Int64
    reason: str
    actor: str
    event_us: Micros
    wall_us: Micros
    action: Literal["challenger_off", "champion_to_fallback"] = "challenger_off"
    withdrawn: str = ""


Event = Assignment | Response | Label | Kpi | Override
KINDS: tuple[str, ...] = ("assignment", "response", "label", "kpi", "override")

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """The MessagePack bytes of an event."""
    return _encoder.encode(event)


def decode(payload: bytes | memoryview) -> Event:
    """The event in `payload`. Raises ContractError for anything else: an unknown kind, a value out of range."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ContractError("event", got=str(error)[:300], expected=f"an event of schema {SCHEMA}") from error
