"""The rehearsal is not canned: other inputs, other outcomes, through the same stack.

Stages are shortened by size; `make proof` plays every variant in full.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import PROJECT, Settings
from pipelines.stack import down
from tests.free_ports import free_ports

SIZE = "0.2"
SEED = os.environ.get("SLIPWAY_TEST_SEED", "7")
PORTS = ("SLIPWAY_AIRFLOW_PORT", "SLIPWAY_MLFLOW_PORT", "SLIPWAY_GATEWAY_PORT")


@contextmanager
def rehearsed(home: Path, variant: str, include: Path = PROJECT / "include") -> Iterator[dict[str, Any]]:
    """The report of a rehearsal in a home of its own; its stack is stopped afterwards."""
    ports = dict(zip(PORTS, map(str, free_ports(3)), strict=True))
    environment = os.environ | ports | {"SLIPWAY_HOME": str(home), "SLIPWAY_INCLUDE_DIR": str(include)}
    command = [sys.executable, "-m", "pipelines.cli.main", "demo", "--variant", variant, "--size", SIZE]
    try:
        done = subprocess.run(
            [*command, "--seed", SEED],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        report = home / "demo" / "report.json"
        assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
        yield json.loads(report.read_text()) | {"exit": done.returncode}
    finally:
        down(
            Settings(
                home=home / "demo", **{name.lower().removeprefix("slipway_"): int(port) for name, port in ports.items()}
            )
        )


def tuned_shortly(include: Path) -> Path:
    """The sample's project, its models tuned in two trials."""
    shutil.copytree(PROJECT / "include", include, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*include.glob("demo/*.yaml"), *include.glob("models/*.yaml")):
        path.write_text(re.sub(r"(?m)^(  trials:) \d+$", r"\1 2", path.read_text()))
    return include


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    """Each act's outcome."""
    return {act["key"]: act["outcome"] for act in report["acts"]}


def failed_checks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Checks of the report that do not hold."""
    return [check for check in report["checks"] if not check["ok"]]


@pytest.mark.timeout(1000)
def test_repaired_challengers_are_promoted(tmp_path: Path) -> None:
    with rehearsed(tmp_path, "repaired-v3", tuned_shortly(tmp_path / "include")) as report:
        assert failed_checks(report) == []
        assert outcomes(report) == {"1": "promote", "3a": "promote", "3b": "promote"}
        assert report["exit"] == 0


@pytest.mark.proof
@pytest.mark.timeout(1000)
def test_a_december_made_of_october_drifts_nowhere_and_retrains_nothing(tmp_path: Path) -> None:
    with rehearsed(tmp_path, "calm-december") as report:
        assert failed_checks(report) == []
        assert outcomes(report) == {"1": "promote", "4": "none"}
        facts = dict(map(tuple, report["acts"][-1]["facts"]))
        assert facts["retraining"] == "not asked for"


@pytest.mark.proof
@pytest.mark.timeout(1000)
def test_the_same_model_is_never_called_better(tmp_path: Path) -> None:
    with rehearsed(tmp_path, "same-model") as report:
        assert failed_checks(report) == []
        verdicts = [v for act in report["acts"][1:] for rollout in act["rollouts"] for v in rollout["verdicts"]]
        assert verdicts
        assert [v for v in verdicts if v["better"] == "yes"] == []
