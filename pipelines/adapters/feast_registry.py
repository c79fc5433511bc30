"""The project's Feast registry, made from its specs: entities, versioned views over the lake, our offline store.

Feast is imported when a function is called: it is slow to import.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.errors import TerminalError
from pipelines.settings import Settings
from pipelines.spec.view import ViewSpec

if TYPE_CHECKING:
    from feast import FeatureStore

PROJECT = "slipway"
OFFLINE_STORE = "pipelines.adapters.feast_asof.AsofOfflineStore"


class Registered(msgspec.Struct, frozen=True):
    """One view as Feast knows it. `live` says whether a spec has this version now."""

    version: str
    entity: str
    features: list[str]
    ttl_s: float
    tags: dict[str, str]


def store_config(settings: Settings, *, password: str | None = None) -> dict[str, Any]:
    """The content of `feature_store.yaml`: the registry in a file or a database, the lake through our offline store.

    password: what stands for that of Redis; None: the real one.
    """
    feast_dir = settings.feast_dir
    online = {"type": "sqlite", "path": str(feast_dir / "online_store.db")}
    if settings.online_store == "redis":
        url = settings.redis_url.get_secret_value()
        online = {"type": "redis", "connection_string": _connection_string(url, password)}
    return {
        "project": PROJECT,
        "provider": "local",
        "registry": _registry(settings, shown=password is not None),
        "online_store": online,
        "offline_store": {"type": OFFLINE_STORE},
        "entity_key_serialization_version": 3,
    }


def _registry(settings: Settings, *, shown: bool) -> str | dict[str, Any]:
    """Where the registry lies; where it is shown, its URL is the name of a variable of the environment."""
    if not settings.feast_registry:
        return str(settings.feast_dir / "registry.db")
    # The driver that Feast would choose, said without its warning.
    url = settings.feast_registry.replace("postgresql://", "postgresql+psycopg://", 1)
    url = "${SLIPWAY_FEAST_REGISTRY}" if shown else url
    # What another process has entered is read at once.
    return {"registry_type": "sql", "path": url, "cache_ttl_seconds": 0}


def _connection_string(url: str, password: str | None) -> str:
    """A Redis URL as Feast writes it: `host:port,name=value,...`, values as JSON. Raises TerminalError."""
    from redis.connection import SSLConnection, parse_url

    given = parse_url(url)
    if "path" in given:
        hint = "Feast reaches Redis by host and port only."
        raise TerminalError("SLIPWAY_REDIS_URL", got="a unix socket", expected="redis:// or rediss://", hint=hint)
    options: dict[str, Any] = {"db": given.get("db", 0)}
    if given.get("connection_class") is SSLConnection:
        options["ssl"] = True
    options |= {name: given[name] for name in ("username", "password") if name in given}
    if password is not None and "password" in options:
        options["password"] = password
    parts = [f"{name}={json.dumps(value)}" for name, value in options.items()]
    if any("," in part for part in parts):
        hint = "Feast divides its connection string by commas."
        raise TerminalError("SLIPWAY_REDIS_URL", got="a comma in user or password", expected="none", hint=hint)
    return ",".join([f"{given.get('host', 'localhost')}:{given.get('port', 6379)}", *parts])


def open_store(settings: Settings) -> FeatureStore:
    """The project's Feast store; `feature_store.yaml` is written beside the registry, for Feast's own tools.

    No secret is written: the file's password is `$SLIPWAY_REDIS_PASSWORD`, which Feast takes from its environment.
    """
    from feast import FeatureStore, RepoConfig

    feast_dir = settings.feast_dir
    feast_dir.mkdir(parents=True, exist_ok=True)
    shown = store_config(settings, password="${SLIPWAY_REDIS_PASSWORD}")  # noqa: S106 - a name, no password
    (feast_dir / "feature_store.yaml").write_text(yaml.safe_dump(shown, sort_keys=False))
    return FeatureStore(config=RepoConfig(**store_config(settings), repo_path=feast_dir))


def apply(settings: Settings, views: Sequence[ViewSpec]) -> list[str]:
    """Enter entities and the views' versions of now; older versions stay, for the releases that read them.

    Returns the views' Feast names. Applying again changes nothing.
    """
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.data_format import DeltaFormat
    from feast.types import Bool, Float32, Float64, Int32, Int64, String

    lake, include = open_lake(settings), settings.include_dir
    types = {"float64": Float64, "float32": Float32, "int64": Int64, "int32": Int32, "bool": Bool, "string": String}
    key_types = {"string": ValueType.STRING, "int64": ValueType.INT64, "int32": ValueType.INT32}
    entities: dict[str, Any] = {}
    made: list[Any] = []
    for spec in views:
        for key, kind in spec.entity.keys.items():
            entities.setdefault(key, Entity(name=key, join_keys=[key], value_type=key_types[kind], owner=spec.owner))
        version = spec.feast_name(include)
        keys = [Field(name=key, dtype=types[kind]) for key, kind in spec.entity.keys.items()]
        features = [
            Field(name=name, dtype=types[feature.type], description=feature.description)
            for name, feature in spec.features.items()
        ]
        made.append(
            FeatureView(
                name=version,
                entities=[entities[key] for key in spec.entity.keys],
                schema=[*keys, *features],
                source=FileSource(
                    name=version,
                    path=lake.uri(f"features/{version}"),
                    s3_endpoint_override=settings.lake_endpoint if lake.remote else None,
                    file_format=DeltaFormat(),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                ),
                ttl=timedelta(microseconds=spec.ttl.us) if spec.ttl else timedelta(0),
                description=spec.description,
                owner=spec.owner,
                tags={"view": spec.name, "entity": spec.entity.name, "publish_every": str(spec.publish_every)},
            )
        )
    store = open_store(settings)
    store.apply([*entities.values(), *made])
    return [view.name for view in made]


def forget(settings: Settings, version: str) -> None:
    """Remove a view version from the registry, if it is there."""
    store = open_store(settings)
    if version in {view.name for view in store.list_feature_views()}:
        store.registry.delete_feature_view(version, PROJECT)


def registered(settings: Settings) -> list[Registered]:
    """Every view version in the registry, by name."""
    store = open_store(settings)
    return [
        Registered(
            version=view.name,
            entity=",".join(column.name for column in view.entity_columns),
            features=[field.name for field in view.features],
            ttl_s=view.ttl.total_seconds() if view.ttl else 0.0,
            tags=dict(view.tags),
        )
        for view in sorted(store.list_feature_views(), key=lambda view: str(view.name))
    ]
