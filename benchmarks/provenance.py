"""What a figure is worth nothing without: the commit, and the machine it was measured on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"


def provenance() -> dict[str, Any]:
    """The checkout's commit, and the machine; to be taken when a run begins, if it takes long."""
    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=True)
    machine = {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    return {"commit": told.stdout.strip(), "machine": machine}


def record(path: Path, results: dict[str, Any]) -> None:
    """Write results as JSON, behind their provenance unless they hold it."""
    path.write_text(json.dumps(provenance() | results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
