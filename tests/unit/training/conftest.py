"""The small project after its first training, made once and copied by tests that change it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.adapters.control_db import control_db
from pipelines.settings import Settings
from pipelines.wiring import training
from tests.unit.training import project
from tests.unit.training.project import AS_OF


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, training.Trained]:
    """The project and its first release."""
    settings = project.make(tmp_path_factory.mktemp("project"))
    return settings, training.train(settings, "buys", AS_OF)


@pytest.fixture
def copied(made: tuple[Settings, training.Trained], tmp_path: Path) -> Iterator[tuple[Settings, training.Trained]]:
    """A copy of the project that a test may change."""
    settings, trained = made
    with copy_of(settings, tmp_path / "copy") as copy:
        yield copy, trained


@pytest.fixture(scope="session")
def with_challenger(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[Settings, training.Trained]
) -> tuple[Settings, str]:
    """The project with a second release, by another trainer; and that release."""
    with copy_of(made[0], tmp_path_factory.mktemp("challenged") / "copy") as settings:
        project.set_model(settings, trainer="lightgbm")
        return settings, training.train(settings, "buys", AS_OF).release


@pytest.fixture
def challenged(
    made: tuple[Settings, training.Trained], with_challenger: tuple[Settings, str], tmp_path: Path
) -> Iterator[tuple[Settings, training.Trained, str]]:
    """A copy of it that a test may change, the first release, and the challenger."""
    settings, challenger = with_challenger
    with copy_of(settings, tmp_path / "copy") as copy:
        yield copy, made[1], challenger


@contextmanager
def copy_of(settings: Settings, folder: Path) -> Iterator[Settings]:
    """Settings of a copy of the project in a folder."""
    shutil.copytree(settings.include_dir.parent, folder)
    copy = Settings(home=folder / "home", include_dir=folder / "include", clock="replay", mlflow_port=9)
    yield copy
    control_db(copy).engine.dispose()
