"""A home with three weeks of the sample in its lake, made once and only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names

SAMPLE_AS_OF = "2013-01-22T00:00:00Z"
DATASETS = ("planes", "weather", "flights_scheduled", "flights_departed", "flights_landed")


@pytest.fixture(scope="session")
def sample_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that other homes take the sample's parsed files from."""
    from pipelines.datasets.flights_sample import cached

    home = tmp_path_factory.mktemp("sample")
    cached(home / "cache", "planes")
    return home


@pytest.fixture(scope="session")
def sample_lake(tmp_path_factory: pytest.TempPathFactory, sample_cache: Path) -> Settings:
    """Settings of a home whose datasets hold everything known by 22 January 2013. Do not write to it."""
    from pipelines.wiring import datasets

    home = tmp_path_factory.mktemp("lake")
    (home / "cache").symlink_to(sample_cache / "cache")
    settings = Settings(home=home, clock="replay")
    for name in DATASETS:
        datasets.ingest(settings, name, parse_event_time(SAMPLE_AS_OF))
    return settings


@pytest.fixture(scope="session")
def sample_views(tmp_path_factory: pytest.TempPathFactory, sample_lake: Settings) -> Settings:
    """Settings of a home with all views published in two steps up to 21 January 2013. Do not write to it."""
    from pipelines.wiring import features

    home: Path = tmp_path_factory.mktemp("views")
    (home / "lake").mkdir()
    (home / "lake" / "datasets").symlink_to(sample_lake.lake / "datasets")
    settings = Settings(home=home, clock="replay")
    for as_of in ("2013-01-15T07:30:00Z", "2013-01-21T12:00:00Z"):
        for view in names(PROJECT / "include", "features"):
            ref = features.build(settings, view, parse_event_time(as_of))
            features.check(settings, ref)
            features.publish(settings, ref)
    return settings
