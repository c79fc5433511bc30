"""What a route means for the next request: pure decisions over (route, overrides, request)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from pipelines.contracts.assignment import draw
from pipelines.contracts.events import Arm, Override
from pipelines.contracts.routes import Mode, Route


class HeldOverride(msgspec.Struct, frozen=True, kw_only=True):
    """An override as this gateway keeps it: the event, the release withdrawn, the route version that cleared it."""

    event: Override
    withdrawn: str
    cleared_by: int | None = None


class Effective(msgspec.Struct, frozen=True, kw_only=True):
    """A route after the overrides: what is really done."""

    mode: Mode
    champion: str
    challenger: str | None = None
    rollout_id: str | None = None
    share_ppm: int = 0
    shadow: bool = False
    override: str | None = None


def clears(route: Route, held: HeldOverride) -> bool:
    """Whether a decision has dealt with the override: the route names it."""
    return str(held.event.id) in route.clears_overrides


def outranks(route: Route, held: HeldOverride) -> bool:
    """Whether the override still reduces what this route says.

    It does for every route of its rollout, and, when it withdrew a champion, for every route that would bring it back.
    """
    if held.event.model != route.model or held.cleared_by is not None or clears(route, held):
        return False
    if held.event.rollout_id is not None and held.event.rollout_id == route.rollout_id:
        return True
    if held.event.action == "champion_to_fallback":
        return held.withdrawn == route.champion
    return held.event.rollout_id is None and held.withdrawn == route.challenger


def effective(route: Route, overrides: Iterable[HeldOverride]) -> Effective:
    """The route with every override that outranks it applied. Exposure is only ever reduced.

    Under an override no request belongs to the rollout: its evidence ends where the gateway stepped in.
    """
    standing = [held for held in overrides if outranks(route, held)]
    if not standing:
        return Effective(
            mode=route.mode,
            champion=route.champion,
            challenger=route.challenger,
            rollout_id=route.rollout_id,
            share_ppm=route.share_ppm,
            shadow=route.shadow,
        )
    # A challenger switched off just before its promotion arrives is not let in as champion either.
    withdrawn = any(held.withdrawn == route.champion for held in standing)
    champion = route.fallback if withdrawn and route.fallback else route.champion
    return Effective(mode="single", champion=champion, override=str(standing[-1].event.id))


def on_trial(route: Route, plan: Effective) -> Arm | None:
    """Whose calls the circuit breaker counts: the challenger's; while it bakes it is champion, with a fallback."""
    if plan.challenger is not None:
        return "challenger"
    bakes = route.rollout_id is not None and route.fallback is not None and plan.override is None
    return "champion" if bakes else None


class ArmMemory:
    """The first arm of each client id, bounded: the oldest is forgotten first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._arms: OrderedDict[tuple[str, str], tuple[str | None, Arm]] = OrderedDict()

    def first(self, model: str, request_id: str) -> tuple[str | None, Arm] | None:
        """(rollout, arm) of the first request with this id, or None when it is new (or long ago)."""
        return self._arms.get((model, request_id))

    def remember(self, model: str, request_id: str, rollout_id: str | None, arm: Arm) -> None:
        """Keep the arm of a new id."""
        self._arms[model, request_id] = (rollout_id, arm)
        if len(self._arms) > self._capacity:
            self._arms.popitem(last=False)

    def forget(self, model: str, request_id: str) -> None:
        """Take back what was remembered of a request that is not in the log after all."""
        self._arms.pop((model, request_id), None)


def arm_of(plan: Effective, salt: str, unit: str, first: tuple[str | None, Arm] | None) -> Arm:
    """The arm that answers: the first arm of a repeated id within the same rollout, else the draw.

    Only a split with a challenger in place can answer with anything but the champion.
    """
    if plan.mode != "split" or plan.challenger is None:
        return "champion"
    if first is not None and first[0] == plan.rollout_id:
        return first[1]
    return draw(salt, unit, plan.share_ppm)
