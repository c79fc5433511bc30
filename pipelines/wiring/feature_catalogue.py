"""What there is to know about the project's feature views: owner, version, freshness, who uses them."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import readable_through
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError
from pipelines.settings import Settings
from pipelines.spec.loading import load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import features
from pipelines.wiring.projects import check


class Freshness(msgspec.Struct, frozen=True):
    """How far a view is, in event time. `lag_s`: event now minus what can be read online; None when never."""

    built_through: str | None
    online_through: str | None
    lag_s: float | None
    allowed_s: float
    fresh: bool


class CatalogueEntry(msgspec.Struct, frozen=True):
    """One view, as a person asks about it."""

    name: str
    version: str
    owner: str
    description: str
    entity: dict[str, str]
    datasets: list[str]
    features: dict[str, dict[str, Any]]
    ttl: str | None
    publish_every: str
    look_back: str
    freshness: Freshness
    used_by: list[str]
    older_versions: list[str]


def entries(settings: Settings) -> list[CatalogueEntry]:
    """Every view of the project, by name."""
    return [entry(settings, name) for name in names(settings.include_dir, "features")]


def entry(settings: Settings, view: str) -> CatalogueEntry:
    """One view. Raises NotFoundError naming the nearest one."""
    spec = load_view(settings.include_dir, view)
    version = spec.feast_name(settings.include_dir)
    models = check(settings).specs.models
    tables = (settings.lake / "features").glob(f"{view}__*")
    return CatalogueEntry(
        name=view,
        version=version,
        owner=spec.owner,
        description=spec.description,
        entity=dict(spec.entity.keys),
        datasets=list(spec.datasets),
        features={name: feature.model_dump(exclude_none=True) for name, feature in spec.features.items()},
        ttl=str(spec.ttl) if spec.ttl else None,
        publish_every=str(spec.publish_every),
        look_back=str(spec.look_back),
        freshness=freshness(settings, spec, version),
        used_by=sorted(name for name, model in models.items() if any(use.view == view for use in model.views)),
        older_versions=sorted(path.name for path in tables if path.name != version),
    )


def freshness(settings: Settings, spec: ViewSpec, version: str) -> Freshness:
    """How old a view is at event now, against what its spec allows."""
    built = (
        features.built_through(settings, version)
        if DeltaLake(settings.lake).exists(features.table_of(version))
        else None
    )
    online = readable_through(settings, version)
    try:
        now: int | None = settings.event_clock().event_now_us()
    except ContractError:  # a replay that has not begun
        now = None
    lag = None if online is None or now is None else (now - online) / 1e6
    return Freshness(
        built_through=from_us(built).isoformat() if built is not None else None,
        online_through=from_us(online).isoformat() if online is not None else None,
        lag_s=lag,
        allowed_s=spec.freshness.us / 1e6,
        fresh=lag is not None and lag <= spec.freshness.us / 1e6,
    )
