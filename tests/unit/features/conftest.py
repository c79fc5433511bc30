"""A home whose feature views are built from the sample's lake."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names


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
