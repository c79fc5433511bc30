"""What the application of the rehearsal knows of its own: what a wrong call costs, and which mistakes it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.contracts.canonical import file_digest
from pipelines.contracts.source_functions import load_function
from pipelines.demo.application import Ask

COST_FILE = "late_arrival_cost.py"


def cost_function(include: Path) -> Callable[[dict[str, Any], float], float]:
    """`cost(outputs, label)` of `include/demo/late_arrival_cost.py`."""
    path = include / "demo" / COST_FILE
    found: Any = load_function(path, file_digest(path), "cost")
    return lambda outputs, label: float(found(outputs, label))


def payload(ask: Ask, names: frozenset[str], mistake: str | None) -> dict[str, Any]:
    """What is really sent for an ask: the inputs in `names`; with the mistake `hours`, scheduled minutes as hours."""
    sent = {name: value for name, value in ask.inputs.items() if name in names}
    if mistake == "hours" and sent.get("sched_minutes") is not None:
        sent["sched_minutes"] = sent["sched_minutes"] / 60.0
    return sent
