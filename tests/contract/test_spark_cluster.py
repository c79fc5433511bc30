"""Spark as a cluster: a real master and two real workers compute a view and a join, equal to DuckDB's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings import PROJECT
from tests.spark import lean_config
from tests.spark_cluster import cluster


@pytest.mark.slow
def test_a_view_and_a_join_on_a_standalone_cluster(tmp_path: Path) -> None:
    properties = lean_config(tmp_path)
    with Path(properties).open("a") as file:
        file.write("spark.executor.memory=500m\nspark.executor.cores=1\n")
        # Both workers have to be there before the first task is given out.
        file.write("spark.scheduler.minRegisteredResourcesRatio=1.0\n")
    with cluster(tmp_path) as running:
        command = [sys.executable, "-m", "tests.spark_driver", str(tmp_path / "home"), running.master, properties]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:] + running.logs()
        told = json.loads(done.stdout.splitlines()[-1])
        assert told.pop("rows") > 100
        assert told == {"view_equal": True, "join_equal": True, "executors": 2}
        applications = running.state()["completedapps"]
    assert [one["name"] for one in applications] == ["slipway"]
