"""What specs mean: versions of views, names of features, the digest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.settings import PROJECT
from pipelines.spec.loading import load_all, load_model, load_view

INCLUDE = PROJECT / "include"


@pytest.fixture
def include(tmp_path: Path) -> Path:
    copied = tmp_path / "include"
    for folder in ("datasets", "features", "transforms", "models"):
        shutil.copytree(INCLUDE / folder, copied / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copied


def test_a_views_version_changes_with_its_transform_and_its_windows_and_with_nothing_else(include: Path) -> None:
    view = load_view(include, "carrier_punctuality")
    before = view.version(include)
    spec = include / "features" / "carrier_punctuality.yaml"
    spec.write_text(spec.read_text().replace("ttl: 2d", "ttl: 3d").replace("owner: flights", "owner: others"))
    assert load_view(include, "carrier_punctuality").version(include) == before
    transform = include / "transforms" / "carrier_punctuality.py"
    source = transform.read_text()
    transform.write_text(source.replace("LATE_MINUTES = 15", "LATE_MINUTES = 16"))
    assert load_view(include, "carrier_punctuality").version(include) != before
    transform.write_text(source)
    spec.write_text(spec.read_text().replace("look_back: 7d", "look_back: 8d"))
    assert load_view(include, "carrier_punctuality").version(include) != before


def test_a_versioned_name_is_the_name_and_four_hex_digits() -> None:
    name, _, version = load_view(INCLUDE, "plane").feast_name(INCLUDE).partition("__")
    assert name == "plane"
    assert len(version) == 4
    int(version, 16)


def test_the_digest_sees_meaning_and_not_layout(include: Path) -> None:
    before = load_all(include).digest()
    file = include / "models" / "air_time.yaml"
    file.write_text("# a comment\n" + file.read_text())
    assert load_all(include).digest() == before
    file.write_text(file.read_text().replace("seed: 7", "seed: 8"))
    assert load_all(include).digest() != before


def test_a_models_columns_are_listed_in_order() -> None:
    spec = load_model(INCLUDE, "air_time")
    assert spec.feature_names()[: len(spec.input_features)] == spec.input_features
    assert spec.feature_names()[-2:] == ["seats", "year_built"]
    assert spec.datasets() == ["flights_landed", "flights_scheduled"]
