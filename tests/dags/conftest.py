"""Airflow without a server: its home is a temporary folder, set before anything imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import PROJECT

# At import, not in a fixture: Airflow reads its configuration when it is first imported.
os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="slipway-airflow-"))
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
sys.path.insert(0, str(PROJECT / "plugins"))


@dataclass
class Parsed:
    """What one fresh process made of the DAG files. `dags` are serialised DAGs as text, by id."""

    errors: dict[str, str]
    heavy: list[str]
    seconds: dict[str, float]
    files: dict[str, float]
    dags: dict[str, str]
    jobs: list[dict[str, Any]]

    def dag(self, dag_id: str) -> dict[str, Any]:
        return dict(json.loads(self.dags[dag_id])["dag"])


class Parsing:
    """A process that parses the DAG files."""

    def __init__(self, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("parse_dags.py")), str(PROJECT / "dags")],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": f"{PROJECT}:{PROJECT / 'plugins'}"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Parsed:
        out, err = self._process.communicate(timeout=240)
        assert self._process.returncode == 0, err[-3000:]
        return Parsed(**json.loads(out.splitlines()[-1]))


@pytest.fixture(scope="session")
def parsings() -> tuple[Parsed, Parsed]:
    """Two parses by two processes that hash differently."""
    running = [Parsing(PYTHONHASHSEED="1"), Parsing(PYTHONHASHSEED="2")]
    return running[0].result(), running[1].result()


@pytest.fixture(scope="session")
def parsed(parsings: tuple[Parsed, Parsed]) -> Parsed:
    return parsings[0]
