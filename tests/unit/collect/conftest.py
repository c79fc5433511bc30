"""The installation that tests of the collector begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.collect.installation import Installation, copied


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that tests copy: making it takes longer than copying it."""
    home = tmp_path_factory.mktemp("template")
    Installation(home)
    return home


@pytest.fixture
def installation(template: Path, tmp_path: Path) -> Installation:
    """An installation of the test's own."""
    return copied(template, tmp_path / "home")
