"""Installed versions, read from both environments without importing anything."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.metadata import distributions

from pipelines.settings import PROJECT
from pipelines.stack.environment import serving_python


@cache
def version_of(distribution: str) -> str | None:
    """The version of Slipway itself, or of a package in the orchestration or else the serving environment."""
    if distribution == "slipway":
        return str(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"])
    serving = [str(path) for path in (serving_python().parent.parent / "lib").glob("python3.*/site-packages")]
    for found in (*distributions(name=distribution), *distributions(name=distribution, path=serving)):
        return found.version
    return None
