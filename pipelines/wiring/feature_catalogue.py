"""What there is to know about the project's feature views: owner, version, freshness, who uses them."""

from __future__ import annotations

from typing import Any

import msgspec

from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.feast_online import readable_through
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError
from pipelines.settings import Settings
from pipelines.spec.loading import load_dataset, load_view, names
from pipelines.spec.view import ViewSpec
from pipelines.wiring import features, view_checks, view_versions
from pipelines.wiring.projects import check
from pipelines.wiring.view_checks import Finding
from pipelines.wiring.view_versions import Pin


class Freshness(msgspec.Struct, frozen=True):
    """How far a view is, in event time. `lag_s`: event now minus what can be read online; None when never.

    `state`: `fresh`, `stale` (older than its spec allows) or `never` (nothing can be read).
    """

    built_through: str | None
    online_through: str | None
    lag_s: float | None
    allowed_s: float
    fresh: bool
    state: str
    alert: str


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
    live_releases: list[Pin]
    older_versions: dict[str, list[Pin]]
    personal: list[str]
    findings: list[Finding]


def entries(settings: Settings) -> list[CatalogueEntry]:
    """Every view of the project, by name."""
    return [entry(settings, name) for name in names(settings.include_dir, "features")]


def entry(settings: Settings, view: str) -> CatalogueEntry:
    """One view. Raises NotFoundError naming the nearest one."""
    spec = load_view(settings.include_dir, view)
    version = spec.feast_name(settings.include_dir)
    models = check(settings).specs.models
    pinned = view_versions.pinned(settings)
    others = sorted(one for one in view_versions.versions(settings) if one.rpartition("__")[0] == view)
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
        live_releases=pinned.get(version, []),
        older_versions={other: pinned.get(other, []) for other in others if other != version},
        personal=personal_keys(settings, spec),
        findings=view_checks.kept(settings, view)[-5:],
    )


def personal_keys(settings: Settings, spec: ViewSpec) -> list[str]:
    """The view's keys that a dataset of it marks as personal: the lake and the online store have their hashes."""
    marked = {
        name
        for dataset in spec.datasets
        for name, column in load_dataset(settings.include_dir, dataset).columns.items()
        if column.pii
    }
    return [name for name in spec.entity.keys if name in marked]


def freshness(settings: Settings, spec: ViewSpec, version: str) -> Freshness:
    """How old a view is at event now, against what its spec allows."""
    built = (
        features.built_through(settings, version) if open_lake(settings).exists(features.table_of(version)) else None
    )
    online = readable_through(settings, version)
    try:
        now: int | None = settings.event_clock().event_now_us()
    except ContractError:  # a replay that has not begun
        now = None
    # A stream makes rows readable before their stamps, which are those of a build: no view is fresher than fresh.
    lag = None if online is None or now is None else max(0, now - online) / 1e6
    fresh = lag is not None and lag <= spec.freshness.us / 1e6
    return Freshness(
        built_through=from_us(built).isoformat() if built is not None else None,
        online_through=from_us(online).isoformat() if online is not None else None,
        lag_s=lag,
        allowed_s=spec.freshness.us / 1e6,
        fresh=fresh,
        state="never" if lag is None else "fresh" if fresh else "stale",
        alert=spec.alert,
    )
