"""A home with three weeks of the sample in its lake, made once and only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings

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
