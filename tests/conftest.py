"""Which tests share a worker when two run side by side, and which begin.

xdist's own groups (`--dist loadgroup`) do not: they rename tests in a way that pytest 9 does not see.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

SHARED = {
    "tests/e2e/test_airflow_gate.py": "tests/e2e/test_stack.py",
    "tests/e2e/test_every_view.py": "tests/e2e/test_stack.py",
    "tests/contract/test_bus_on_kafka.py": "tests/contract/test_bus.py",
    "tests/contract/test_collector_on_kafka.py": "tests/contract/test_bus.py",
    "tests/unit/training/test_backtest.py": "tests/unit/training/test_jobs.py",
}
"""Files whose tests share a stack, a broker or a trained project with those of another file."""
ALONE = frozenset({"tests/e2e/test_rehearsal.py"})
"""Files whose tests share nothing, and take minutes each."""

# Kafka and Spark live for a minute here: to compile their code well takes longer than it saves.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """A file's tests share its fixtures, so they share a worker, in the order in which files were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if file in ALONE else SHARED.get(file, file)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test begin: else one worker is left with them when the other has nothing more to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
