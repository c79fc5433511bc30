"""Every file of `include/models_invalid` is wrong in one way; its first line is what must be said about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipelines.contracts.errors import NotFoundError, SpecError
from pipelines.settings import PROJECT, Settings
from pipelines.spec.checking import check_project
from pipelines.spec.loading import load_model
from pipelines.wiring import projects, rollout_check

SETTINGS = Settings(home=PROJECT / "nothing_is_installed_here")
INCLUDE = PROJECT / "include"
INVALID = INCLUDE / "models_invalid"
FILES = sorted(INVALID.rglob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of the project's `include` with one more spec in it."""

    def with_spec(file: Path) -> Path:
        include = tmp_path / "include"
        for folder in ("datasets", "features", "transforms", "models"):
            shutil.copytree(INCLUDE / folder, include / folder, ignore=shutil.ignore_patterns("__pycache__"))
        folder = "models" if file.parent == INVALID else file.parent.name
        shutil.copy(file, include / folder / file.name)
        return include

    return with_spec


@pytest.mark.parametrize("file", FILES, ids=[file.relative_to(INVALID).with_suffix("").as_posix() for file in FILES])
def test_a_wrong_spec_is_told_with_file_and_line(file: Path, project: Callable[[Path], Path]) -> None:
    expected = file.read_text().splitlines()[0].removeprefix("# ")
    _, mistakes = check_project(project(file), partial(rollout_check.problems, SETTINGS))
    assert mistakes == [expected]


def test_loading_a_wrong_spec_raises_the_same_text(project: Callable[[Path], Path]) -> None:
    include = project(INVALID / "unknown_key.yaml")
    with pytest.raises(SpecError) as raised:
        load_model(include, "unknown_key")
    assert str(raised.value).startswith(
        "include/models/unknown_key.yaml:20: unknown key 'traning'. Did you mean 'training'?"
    )


def test_an_unknown_model_is_told_with_the_nearest_name() -> None:
    with pytest.raises(NotFoundError, match=r"Did you mean 'late_arrival'\?"):
        load_model(INCLUDE, "late_arival")


def test_the_project_itself_has_no_mistakes() -> None:
    checked = projects.check(SETTINGS)
    specs = checked.specs
    assert checked.mistakes == []
    assert {"late_arrival", "air_time"} <= set(specs.models)
    assert len(specs.views) >= 4
