"""What a rollout can be planned with before any traffic is logged: a release's evaluation, as rates."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.errors import ContractError
from pipelines.rollout.base_rates import Answers, evaluated
from pipelines.spec.model import ModelSpec
from pipelines.training.columns import microseconds
from pipelines.training.metrics import Vector
from pipelines.wiring.rollout_gate import unplanned


def planning_rates(
    spec: ModelSpec, labelled: float, rows: pa.Table, scored: Vector, other: Vector | None
) -> dict[str, Any]:
    """`pipelines.rollout.rates.Rates` of the test part: its labelled `rows`, their scores, and those of the champion
    (NaN where it was fitted on the row; None without one). `labelled` is the share of requests with a label. Nothing
    under a policy that cannot be.
    """
    try:
        policy = unplanned(spec)
    except ContractError:
        return {}  # a policy that cannot be is told by `slipway check`, and is no reason not to train
    event_us = microseconds(rows.column("event_timestamp"))
    named = {name: rows.column(name).to_pylist() for name in spec.slices if name in rows.column_names}
    label = rows.column("label").to_numpy()
    unknown = np.full(len(label), np.nan)
    answers = Answers(
        event_us=event_us,
        failed=np.zeros(len(label), dtype=np.bool_),
        score=scored,
        latency_ms=unknown,
        label=label,
        kpi=unknown,
        slices=[
            {name: str(values[index]) for name, values in named.items() if values[index] is not None}
            for index in range(len(label))
        ],
    )
    found = evaluated(
        policy,
        answers,
        unknown if other is None else other,
        labelled=labelled,
        seconds=float(event_us.max() - event_us.min()) / 1e6,
    )
    rates: dict[str, Any] = msgspec.to_builtins(found)
    return rates
