"""Set-up on machines where something is missing: found out first, named in one line."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from types import ModuleType

import pytest

from pipelines.settings import PROJECT
from scripts import environments, setup, system_packages
from scripts.steps import SetupError


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A machine without OpenMP, uv, pip and ensurepip, where nobody may install."""
    for name in ("has_uv", "has_pip", "has_ensurepip"):
        monkeypatch.setattr(system_packages, name, lambda: False)
    monkeypatch.setattr(system_packages, "has_library", lambda name: name != "libgomp.so.1")
    monkeypatch.setattr(system_packages, "may_install", lambda: None)
    return system_packages


def test_missing_apt_packages_are_named_in_one_line(bare):
    with pytest.raises(SetupError) as missing:
        bare.ensure_system_packages()
    venv = f"python3.{sys.version_info[1]}-venv"
    assert str(missing.value) == (
        f"missing system packages: libgomp1 {venv}. Run: sudo apt-get install -y libgomp1 {venv}"
    )


def test_any_one_way_to_uv_is_enough(bare, monkeypatch):
    monkeypatch.setattr(bare, "has_pip", lambda: True)
    assert bare.missing_apt_packages() == ["libgomp1"]


def test_missing_packages_are_installed_when_it_may_and_lists_are_fetched_when_they_are_old(bare, monkeypatch):
    ran = []

    def run(command: list[str]) -> bool:
        ran.append(command[command.index("apt-get") + 1])
        if ran == ["install", "update", "install"]:
            for name in ("has_pip", "has_library"):
                monkeypatch.setattr(bare, name, lambda *_: True)
        return ran != ["install"]  # the first attempt finds no package lists

    monkeypatch.setattr(bare, "may_install", list)
    monkeypatch.setattr(bare, "run_quietly", run)
    bare.ensure_system_packages()
    assert ran == ["install", "update", "install"]


def test_an_apt_that_fails_leaves_the_line_to_type(bare, monkeypatch):
    monkeypatch.setattr(bare, "may_install", list)
    monkeypatch.setattr(bare, "run_quietly", lambda command: False)
    with pytest.raises(SetupError, match="sudo apt-get update && sudo apt-get install -y libgomp1"):
        bare.ensure_system_packages()


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_another_python_is_refused_with_what_to_type(version):
    with pytest.raises(SetupError, match=r"Python 3.11 or 3.12 is needed; got 3\.1[03].*PYTHON="):
        setup.check_python(version)


def test_finding_python_refuses_one_that_does_not_fit(tmp_path):
    fake = tmp_path / "python3.9"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [PROJECT / "scripts" / "find-python"],
        env={**os.environ, "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Python 3.11 or 3.12 is needed" in done.stderr


def test_a_change_of_a_lock_makes_an_environment_stale(tmp_path):
    lock = tmp_path / "lock.txt"
    lock.write_text("a==1\n")
    environment = environments.Environment("orchestration", tmp_path / "env", (lock,), command=True)
    (environment.path / "bin").mkdir(parents=True)
    environment.python.touch()
    (environment.path / "pyvenv.cfg").write_text("version_info = 3.11.7\n")
    assert not environment.is_current()
    (environment.path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    environments.finish_build(environment)
    assert environment.is_current()
    lock.write_text("a==2\n")
    assert not environment.is_current()


def test_setup_with_nothing_to_do_takes_less_than_a_second():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, PROJECT / "scripts" / "setup.py"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Its own time, not that of the clock: other tests may have the processors now.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert done.stdout == ""


def test_a_set_up_keeps_spark_once_it_is_installed(monkeypatch, tmp_path):
    environment = environments.Environment("test", tmp_path, (tmp_path / "lock.txt",), command=False)
    monkeypatch.setattr(environments, "_python_is_as_asked", lambda _: True)
    monkeypatch.setattr(environments, "run_quietly", lambda _: True)
    asked = []
    monkeypatch.setattr(environments.subprocess, "Popen", lambda command, **_: asked.append(command))
    environments.start_build("uv", environment)
    environments.spark_stamp(environment).write_text("of an older lock")
    environments.start_build("uv", environment)
    assert [str(environments.SPARK_LOCK) in command for command in asked] == [False, True]
