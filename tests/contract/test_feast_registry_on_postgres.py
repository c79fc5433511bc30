"""Feast's registry in a Postgres database: what one host enters, another reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from feast.repo_config import load_repo_config

from pipelines.adapters import feast_registry
from pipelines.settings import Settings
from pipelines.spec.loading import load_view, names
from tests.postgres import PostgresServer


def test_views_entered_on_one_host_are_read_on_another_and_entering_them_again_changes_nothing(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    here = Settings(home=tmp_path / "here", feast_registry=url)
    views = [load_view(here.include_dir, name) for name in names(here.include_dir, "features")]
    entered = feast_registry.apply(here, views)
    there = Settings(home=tmp_path / "there", feast_registry=url)
    found = feast_registry.registered(there)
    assert [view.version for view in found] == sorted(entered)
    assert found == feast_registry.registered(here)
    assert feast_registry.apply(there, views) == entered
    assert feast_registry.registered(here) == found
    assert not list(tmp_path.rglob("registry.db"))

    # Feast's own tools read the project by the file beside it, which holds no password.
    file = there.feast_dir / "feature_store.yaml"
    assert url.split(":")[2].split("@")[0] not in file.read_text()
    monkeypatch.setenv("SLIPWAY_FEAST_REGISTRY", url)
    assert load_repo_config(there.feast_dir, file).registry.path == url.replace("postgresql:", "postgresql+psycopg:")
