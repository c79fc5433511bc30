"""The rehearsal's own copy of the specs, and the edits its data scientists make to it between acts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

MIN_REQUESTS = 200
WHOLE = ("backtest", "shadow")
"""Stages that no rehearsal shortens: their labels need days to mature, and nobody is exposed in them."""


def copy_include(source: Path, target: Path) -> None:
    """A fresh copy of the project's `include` folder."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "models_invalid"))


def edit_model(include: Path, model: str, file: str, *, size: float, seed: int) -> Path:
    """Let `include/demo/<file>` become the model's spec, trained with `seed`; serving stages `size` times as long."""
    yaml = YAML()
    yaml.width = 200
    document: Any = yaml.load((include / "demo" / file).read_text())
    document["name"] = model
    document["training"]["seed"] = seed
    for stage in document["rollout"]["stages"]:
        if stage.get("requests") and stage["name"] not in WHOLE:
            stage["requests"] = max(MIN_REQUESTS, int(stage["requests"] * size))
    target = include / "models" / f"{model}.yaml"
    with target.open("w") as handle:
        yaml.dump(document, handle)
    return target


def calm_december(include: Path) -> None:
    """Let every dataset of the sample repeat October's days in place of December's."""
    yaml = YAML()
    yaml.width = 200
    for path in sorted((include / "datasets").glob("*.yaml")):
        document: Any = yaml.load(path.read_text())
        if document["source"]["kind"] == "flights_sample":
            document["source"]["december"] = "as_october"
            with path.open("w") as handle:
                yaml.dump(document, handle)
