"""Cases of `slipway-gate/1` as somebody else would write them: another generator, other encodings, other habits.

It shares no code with the simulator: Python's own random numbers, gamma latencies, errors in bursts, scores that are
not calibrated, and files with what is optional left out.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BEGIN_US = 1_751_000_000_000_000
Rows = dict[str, list[dict[str, Any]]]


def rows(
    seed: int, *, requests: int = 900, error: float = 0.01, slow: float = 1.0, kpi: float = 1.0, pace_s: float = 6.0
) -> Rows:
    """One rollout: shadow, then a canary at 25 %; `error`, `slow` and `kpi` are the challenger's in the canary."""
    rnd = random.Random(seed)
    now, burst = BEGIN_US, 0
    made: Rows = {"assignments": [], "responses": [], "labels": [], "kpi": []}
    for n in range(2 * requests):
        now += 1 + int(rnd.gammavariate(0.7, pace_s / 0.7 * 1e6))
        burst = max(burst - 1, 0) if rnd.random() > 0.002 else 12
        shadow = n < requests
        arm = "both" if shadow else ("challenger" if rnd.random() < 0.25 else "champion")
        made["assignments"].append(
            {"seq": n, "request_id": 7_000_000 + n, "ts": now, "stage": "shadow" if shadow else "canary_25", "arm": arm,
             "share": None if shadow else 0.25, "segment": rnd.choice(["north", "south", None])}
        )  # fmt: skip
        hidden = rnd.betavariate(2.0, 5.0)
        for side in ("champion", "challenger"):
            if arm not in ("both", side):
                continue
            worse = side == "challenger" and not shadow
            took = rnd.gammavariate(3.0, 8.0) * (slow if worse else 1.0)
            failed = rnd.random() < (0.3 if burst else (error if worse else 0.01))
            score = min(max(hidden + rnd.uniform(-0.08, 0.08), 0.0), 1.0)
            made["responses"].append(
                {"request_id": 7_000_000 + n, "arm": side, "ts": now + int(1000 * took), "latency_ms": took,
                 "status": "error" if failed else "ok", "score": None if failed else score}
            )  # fmt: skip
        if rnd.random() < 0.8:
            truth = float(rnd.random() < hidden)
            # Positives are reported by hand, in one late file at the end of the hour; negatives at once.
            due = now + 5_000_000 if not truth else (now // 3_600_000_000 + 1) * 3_600_000_000
            made["labels"].append({"request_id": 7_000_000 + n, "ts": due, "label": truth})
        value = max(rnd.gauss(4.0, 1.5) * (kpi if arm == "challenger" else 1.0), 0.0)
        made["kpi"].append({"request_id": 7_000_000 + n, "ts": now + 30_000_000, "value": value})
    return made


_TYPES: dict[str, pa.DataType] = {
    "rollout_id": pa.int32(), "seq": pa.int64(), "request_id": pa.int64(), "share": pa.float64(),
    "latency_ms": pa.float32(), "score": pa.float64(), "label": pa.float64(), "value": pa.float64(),
}  # fmt: skip


def tables(
    rollouts: dict[int, Rows], rnd: random.Random | None = None, *, text: pa.DataType | None = None, unit: str = "us"
) -> dict[str, pa.Table]:
    """The rollouts as four tables: rows shuffled by `rnd`, texts as `text`, times in another unit."""
    text = text or pa.string()
    found = {}
    for kind in ("assignments", "responses", "labels", "kpi"):
        chosen = [{"rollout_id": number} | row for number, made in rollouts.items() for row in made[kind]]
        if not chosen:
            continue
        if rnd is not None:
            rnd.shuffle(chosen)
        columns = {}
        for name in chosen[0]:
            values = [row[name] for row in chosen]
            if name == "ts":
                columns[name] = pa.array(values, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"))
            else:
                columns[name] = pa.array(values, _TYPES.get(name, text) if not pa.types.is_dictionary(text) else None)
                if name in _TYPES:
                    columns[name] = columns[name].cast(_TYPES[name])
                elif pa.types.is_dictionary(text):
                    columns[name] = columns[name].dictionary_encode()
        found[kind] = pa.table(columns)
    return found


def write(folder: Path, found: dict[str, pa.Table], *, row_group: int) -> None:
    """The tables as Parquet files."""
    for kind, table in found.items():
        pq.write_table(table, folder / f"{kind}.parquet", row_group_size=row_group)


def upto(made: Rows, ts: int) -> Rows:
    """The rows that were there at `ts`."""
    return {kind: [row for row in part if row["ts"] <= ts] for kind, part in made.items()}


def policy(
    requests: int = 900, *, metrics: tuple[str, ...] = ("error_rate", "latency", "loss", "kpi")
) -> dict[str, Any]:
    """A policy in that somebody's words."""
    known = {
        "error_rate": {"kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.05, "weight": 0.3},
        "latency": {"kind": "quantile", "q": 0.5, "promote_margin_rel": 0.5, "weight": 0.2},
        "loss": {"kind": "paired_loss", "loss": "brier", "harm_rel": 0.05, "promote_margin_rel": 0.3, "weight": 0.3},
        "kpi": {"kind": "mean", "range": [0, 12], "better": "higher", "promote_margin_rel": 0.3, "weight": 0.2},
    }
    return {
        "schema": "slipway-gate/1",
        "response_deadline_s": 20,
        "label_maturity_s": 4000,
        "stages": [
            {"name": "shadow", "share": None, "requests": requests},
            {"name": "canary_25", "share": 0.25, "requests": requests},
        ],
        "slices": ["segment"],
        "metrics": [{"name": name, **known[name]} for name in metrics],
    }


def seconds(line: dict[str, Any]) -> int:
    """A line's time in microseconds."""
    return int(np.datetime64(str(line["ts"]).removesuffix("Z"), "us").astype(np.int64))
