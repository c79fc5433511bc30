"""Readings of a park of pumps, made from a seed: vibration creeps up before a failure, and a repair resets it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

START = datetime(2026, 1, 1, tzinfo=UTC)


def serial(pump: int) -> str:
    """The serial number of a pump: personal data, for it leads to the pump's owner."""
    return f"SN-{pump:03d}-{(pump * 7919) % 10_000:04d}"


def readings(path: Path, *, pumps: int = 40, days: int = 120, seed: int = 11) -> int:
    """Write one reading every two hours for every pump as CSV; returns the number of rows."""
    rng = np.random.default_rng(seed)
    steps = days * 12
    rows = []
    for pump in range(pumps):
        wear = rng.uniform(0, 0.5)
        fragile = rng.uniform(0.5, 1.5)
        for step in range(steps):
            load = float(np.clip(0.6 + 0.3 * np.sin(step / 6) + rng.normal(0, 0.1), 0, 1.2))
            wear += 0.004 * load * fragile
            failed = bool(rng.random() < 0.25 * max(0.0, wear - 0.6) ** 2)
            rows.append(
                {
                    "pump": serial(pump),
                    "read_at": (START + timedelta(hours=2 * step)).isoformat(),
                    "load": round(load, 4),
                    "vibration": round(float(1 + 2 * wear + rng.normal(0, 0.15)), 4),
                    "temperature": round(float(40 + 20 * load + rng.normal(0, 2)), 2),
                    "failed": failed,
                }
            )
            if failed:
                wear = 0.0
    frame = pd.DataFrame(rows).sort_values(["read_at", "pump"])
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return len(frame)
