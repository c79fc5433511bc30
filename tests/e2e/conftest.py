"""Which end-to-end tests begin, and the stack that several use."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import PROJECT, Settings
from pipelines.stack import PartStatus, down, up
from tests.free_ports import free_ports
from tests.patience import patient

__all__ = ["patient"]

FIRST = ("test_rehearsal", "test_kills", "test_steel_thread")
"""The order in which files begin. A worker has one more test than the one it runs: behind a rehearsal a short one."""
LAST = ("test_stack", "test_every_view", "test_airflow_gate")
"""Their stack runs to the end of the session: nothing else should have to share the processors with it. The last of
them lets days pass.
"""
EVENT_NOW = "2013-01-03T18:00:00Z"
STEADY, CAREFUL = "steady", "careful"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rehearsals are the longest, so they begin."""
    place = {file: at for at, file in enumerate([*FIRST, "", *LAST])}
    items.sort(key=lambda item: place.get(item.path.stem, place[""]))


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The sample in an installation of its own, at one moment of its year; nothing runs by schedule.

    `late_arrival` goes through three short stages, judged by errors alone. Two more models have its spec and no data;
    one of them asks two people.
    """
    airflow, mlflow, gateway = free_ports(3)
    home = tmp_path_factory.mktemp("stack")
    made = Settings(
        home=home,
        include_dir=_include(home / "include"),
        airflow_port=airflow,
        mlflow_port=mlflow,
        gateway_port=gateway,
        gateway_workers=1,
        route_poll_ms=50,
        clock="replay",
    )
    made.event_clock().tick(parse_event_time(EVENT_NOW))
    return made


@pytest.fixture(scope="session")
def stack(settings: Settings) -> Iterator[list[PartStatus]]:
    """Every part of it."""
    began = time.monotonic()
    try:
        yield up(settings)
        print(f"the stack was up in {time.monotonic() - began:.0f} s")
    finally:
        down(settings)


def _include(folder: Path) -> Path:
    shutil.copytree(PROJECT / "include", folder, ignore=shutil.ignore_patterns("__pycache__", "models_invalid", "demo"))
    _two_models(folder / "models")
    for path in [*folder.glob("*/*.yaml")]:
        if path.parent.name in ("datasets", "features", "models"):
            spec = yaml.safe_load(path.read_text())
            for key in ("schedule", "monitor", "score"):
                spec.pop(key, None)
            if spec["name"] == "late_arrival":
                stages = [{"name": "shadow", "requests": 20}, {"name": "canary_50", "share": 0.5, "requests": 20}]
                metric = {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02}
                spec.pop("traffic")  # base rates of metrics that are not judged here
                spec["rollout"] |= {"stages": [*stages, {"name": "bake", "requests": 20}]}
                spec["rollout"]["policy"] = {"schema": "slipway-gate/1", "integrity": [], "metrics": [metric]}
            path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder


def _two_models(folder: Path) -> None:
    spec = yaml.safe_load((folder / "late_arrival.yaml").read_text())
    stages = [{"name": "shadow", "requests": 100}, {"name": "canary_50", "share": 0.5, "requests": 100}]
    spec["rollout"] |= {"stages": [*stages, {"name": "bake", "requests": 100}], "max_wait": "3d event_time"}
    for name, asks in {STEADY: {}, CAREFUL: {"approvers": ["approver", "admin"], "approvals": 2}}.items():
        named = spec | {"name": name, "rollout": spec["rollout"] | asks}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(named))
