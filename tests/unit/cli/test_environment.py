"""The command says what is wrong when it is run from the wrong environment."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

from pipelines.settings import PROJECT
from pipelines.stack.environment import serving_python

COMMAND = ["-m", "pipelines.cli.main", "status"]


def test_run_from_the_serving_environment_it_names_the_right_one():
    done = subprocess.run(
        [serving_python(), *COMMAND], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert "got the serving environment" in done.stderr
    assert ".venv/bin/slipway" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "pipelines.cli.main", "--help"], cwd=PROJECT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Its own time, not that of the clock: other tests may have the processors now.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_status_exits_1_when_parts_do_not_run_and_an_unknown_verb_with_2(tmp_path):
    def slipway(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli.main", *arguments],
            cwd=PROJECT,
            env={**os.environ, "SLIPWAY_HOME": str(tmp_path), **settings},
            capture_output=True,
            text=True,
            check=False,
        )

    assert slipway("status", "--json").returncode == 1
    assert '"state": "stopped"' in slipway("status", "--json").stdout
    assert slipway("launch").returncode == 2
    unknown = slipway("up", "gatway")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("slipway: part 'gatway'")
    wrong = slipway("status", SLIPWAY_AIRFLOW_PORT="eighty")
    assert wrong.returncode == 2
    assert "airflow_port" in wrong.stderr
    assert "Traceback" not in wrong.stderr
