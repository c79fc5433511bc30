"""The policy of the published table, and variants of it that ask one question alone."""

from __future__ import annotations

from typing import Any

METRICS: list[dict[str, Any]] = [
    {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.003, "weight": 0.25},
    {"name": "invalid_score", "kind": "event", "weight": 0.10},
    {"name": "latency_p50", "kind": "quantile", "q": 0.50, "harm_ratio": 1.05, "promote_margin_rel": 0.10,
     "weight": 0.125},
    {"name": "latency_p99", "kind": "quantile", "q": 0.99, "harm_ratio": 1.20, "promote_margin_rel": 0.20,
     "weight": 0.125},
    {"name": "score_shift", "kind": "paired_mean", "tolerance_rel": 0.25, "weight": 0.05},
    {"name": "score_disagreement", "kind": "paired_abs", "tolerance_abs": 0.05, "weight": 0.05},
    {"name": "logloss", "kind": "paired_loss", "clip": 0.01, "harm_rel": 0.01, "promote_margin_rel": 0.03,
     "weight": 0.20},
    {"name": "kpi", "kind": "mean", "range": [0, 10], "better": "higher", "harm_rel": 0.02, "promote_margin_rel": 0.05,
     "weight": 0.10},
]  # fmt: skip


def policy(
    requests: int, *, shadow: bool = True, shares: tuple[float, ...] = (0.05, 0.2, 0.5), **changes: Any
) -> dict[str, Any]:
    """Shadow, then 5, 20 and 50 %, of as many requests each; `changes` replace whole keys."""
    stages: list[dict[str, Any]] = [{"name": "shadow", "share": None, "requests": requests}] if shadow else []
    stages += [{"name": f"canary_{round(100 * s):02d}", "share": s, "requests": requests} for s in shares]
    return {
        "schema": "slipway-gate/1",
        "budget": {"rollback": 0.01, "hold": 0.01, "promote": 0.05},
        "unit": "request",
        "warmup_requests": 200,
        "response_deadline_s": 30,
        "label_maturity_s": 3600,
        "stages": stages,
        "slices": ["slice"],
        "metrics": METRICS,
        "integrity": ["sample_ratio", "lost_responses", "duplicates"],
    } | changes


def proof_alone(requests: int, metric: dict[str, Any]) -> dict[str, Any]:
    """Promotion rests on one metric's proof, and nothing can roll back: what the proof alone lets through."""
    return policy(requests, metrics=[metric | {"weight": 0.0}], require=[metric["name"]], integrity=[])
