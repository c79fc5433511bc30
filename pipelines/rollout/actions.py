"""What can be done about a rollout: small frozen actions, stored in the decision that orders them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pipelines.contracts.routes import Route

Level = Literal["info", "page"]
Way = Literal["log", "webhook", "email"]


class SetRoute(msgspec.Struct, frozen=True, tag="set_route", tag_field="action", kw_only=True):
    """Let the gateway follow `route` from now on. Its `version` is given when it is written."""

    route: Route


class Freeze(msgspec.Struct, frozen=True, tag="freeze", tag_field="action", kw_only=True):
    """Leave the model's route as it is, at the challenger's share of now, until something is decided."""

    model: str
    stage: str
    share_ppm: int = 0


class SetChampion(msgspec.Struct, frozen=True, tag="set_champion", tag_field="action", kw_only=True):
    """Make `release` the champion that batch scoring, monitoring and the next comparison use."""

    model: str
    release: str


class TagRelease(msgspec.Struct, frozen=True, tag="tag_release", tag_field="action", kw_only=True):
    """Set tags of the release's registered version (a mirror: the control database is the truth)."""

    model: str
    release: str
    tags: dict[str, str]


class SetAlias(msgspec.Struct, frozen=True, tag="set_alias", tag_field="action", kw_only=True):
    """Point a registry alias at the release, or remove it when `release` is None (a mirror)."""

    model: str
    alias: str
    release: str | None


class EmitAsset(msgspec.Struct, frozen=True, tag="emit_asset", tag_field="action", kw_only=True):
    """Tell consumers that an asset has changed."""

    uri: str
    extra: dict[str, Any] = {}


class Notify(msgspec.Struct, frozen=True, tag="notify", tag_field="action", kw_only=True):
    """Tell people. `page` asks for somebody now. `to` is the webhook's URL or the e-mail's address."""

    level: Level
    text: str
    by: Way = "log"
    to: str = ""


class AttachReport(msgspec.Struct, frozen=True, tag="attach_report", tag_field="action", kw_only=True):
    """Put the rollout's page beside the release's other artifacts (a mirror)."""

    model: str
    release: str
    rollout_id: str


Action = SetRoute | Freeze | SetChampion | TagRelease | SetAlias | EmitAsset | Notify | AttachReport

_decoder = msgspec.json.Decoder(list[Action])


def to_builtins(actions: tuple[Action, ...]) -> list[dict[str, Any]]:
    """JSON-ready values of the actions, as the record holds them."""
    return [msgspec.to_builtins(action) for action in actions]


def from_builtins(values: list[dict[str, Any]]) -> tuple[Action, ...]:
    """The actions of a recorded decision. Raises `msgspec.ValidationError`."""
    return tuple(_decoder.decode(msgspec.json.encode(values)))


def target(action: Action) -> str:
    """The system an action changes; actions on one target keep their order."""
    match action:
        case SetRoute() | SetChampion() | Freeze():
            return "control"
        case TagRelease() | SetAlias():
            return "registry"
        case EmitAsset():
            return "assets"
        case Notify(by="log"):
            return "people"
        case Notify():
            return action.by
        case AttachReport():
            return "reports"
