"""Homes with three weeks of the sample, made once for all workers of a run and only read."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
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

    return made_once(tmp_path_factory, "sample", lambda home: cached(home / "cache", "planes"))


@pytest.fixture(scope="session")
def sample_lake(tmp_path_factory: pytest.TempPathFactory, sample_cache: Path) -> Settings:
    """Settings of a home whose datasets hold everything known by 22 January 2013. Do not write to it."""
    from pipelines.wiring import datasets

    def make(home: Path) -> None:
        (home / "cache").symlink_to(sample_cache / "cache")
        for name in DATASETS:
            datasets.ingest(Settings(home=home, clock="replay"), name, parse_event_time(SAMPLE_AS_OF))

    return Settings(home=made_once(tmp_path_factory, "lake", make), clock="replay")


@pytest.fixture(scope="session")
def sample_views(tmp_path_factory: pytest.TempPathFactory, sample_lake: Settings) -> Settings:
    """Settings of a home with all views published in two steps up to 21 January 2013. Do not write to it."""
    from pipelines.wiring import features

    def make(home: Path) -> None:
        (home / "lake").mkdir()
        (home / "lake" / "datasets").symlink_to(sample_lake.lake / "datasets")
        settings = Settings(home=home, clock="replay")
        for as_of in ("2013-01-15T07:30:00Z", "2013-01-21T12:00:00Z"):
            for view in names(PROJECT / "include", "features"):
                ref = features.build(settings, view, parse_event_time(as_of))
                features.check(settings, ref)
                features.publish(settings, ref)

    return Settings(home=made_once(tmp_path_factory, "views", make), clock="replay")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` has filled: by the first worker that asks; the others wait for it."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each worker's own folder lies in that of the run
    home, done = run / f"shared-{name}", run / f"shared-{name}.done"
    with (run / f"shared-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            home.mkdir()
            make(home)
            done.touch()
    return home
