"""A plain Feast repository for the benchmarks that stand beside Feast's own stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plain_store(folder: Path, online: Mapping[str, Any], offline: Mapping[str, Any]) -> Any:
    """A `FeatureStore` with a registry of its own for this online store in `folder`."""
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="bench",
            registry=str(folder / f"{online['type']}_registry.db"),
            provider="local",
            online_store=dict(online),
            offline_store=dict(offline),
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    )
