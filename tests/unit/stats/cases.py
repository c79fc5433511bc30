"""Policies and cuts of made-up rollouts, for the tests of fold and judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.rollout.policy import Policy

METRICS: list[dict[str, Any]] = [
    {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.03, "weight": 0.25},
    {"name": "invalid_score", "kind": "event", "weight": 0.10},
    {"name": "latency_p50", "kind": "quantile", "q": 0.5, "promote_margin_rel": 0.2, "weight": 0.15},
    {"name": "score_shift", "kind": "paired_mean", "tolerance_rel": 0.25, "weight": 0.05},
    {"name": "score_disagreement", "kind": "paired_abs", "tolerance_abs": 0.05, "weight": 0.05},
    {"name": "logloss", "kind": "paired_loss", "harm_rel": 0.01, "promote_margin_rel": 0.1, "weight": 0.25},
    {"name": "kpi", "kind": "mean", "range": [0, 10], "better": "higher", "harm_rel": 0.02,
     "promote_margin_rel": 0.1, "weight": 0.15},
]  # fmt: skip


def mapping(shadow: int = 1500, canary: int = 1500, **changes: Any) -> dict[str, Any]:
    """A small policy: shadow, then canaries at 20 and 50 %."""
    return {
        "schema": "slipway-gate/1",
        "warmup_requests": 50,
        "label_maturity_s": 600,
        "stages": [
            {"name": "shadow", "share": None, "requests": shadow},
            {"name": "canary_20", "share": 0.2, "requests": canary},
            {"name": "canary_50", "share": 0.5, "requests": canary},
        ],
        "slices": ["slice"],
        "metrics": METRICS,
    } | changes


def policy(shadow: int = 1500, canary: int = 1500, **changes: Any) -> Policy:
    """The same, parsed."""
    return Policy.parse(mapping(shadow, canary, **changes))


def stamps(table: pa.Table) -> np.ndarray[Any, Any]:
    """Event times in microseconds."""
    return table["ts"].cast(pa.int64()).to_numpy()


def between(tables: dict[str, pa.Table], low: int, high: int) -> dict[str, pa.Table]:
    """The rows with low <= ts < high."""
    times = {kind: pa.array(stamps(table)) for kind, table in tables.items()}
    return {
        kind: table.filter(pc.and_(pc.greater_equal(times[kind], low), pc.less(times[kind], high)))
        for kind, table in tables.items()
    }


def shuffled(tables: dict[str, pa.Table], rng: np.random.Generator) -> dict[str, pa.Table]:
    """The rows of each table in another order."""
    return {kind: table.take(pa.array(rng.permutation(table.num_rows))) for kind, table in tables.items()}
