"""From the integer sums of one metric to its e-values. The live judge calls it on one row, the replay on many at once.

Shapes: `units` (..., stages, bets) are sums of increments in 2**-40 nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.stats.mixture import log_mean_exp, over_slices, over_time
from pipelines.stats.nats import Floats, Ints, to_nats


class Family(NamedTuple):
    """Log e-values of one metric: the whole family (...), all traffic (...), each slice (..., slices)."""

    log_e: Floats
    overall: Floats
    slices: Floats


def harm(units: Ints, *, max_slices: int, sticky: bool, weights: Floats | None = None) -> Family:
    """The family's e-value against "no harm" from `units` (..., 1 + S, K, G): all traffic, then the slices. `weights`
    (K,) of the stages; None: all alike.
    """
    each = over_time(to_nats(units), sticky=sticky, weights=weights)
    whole, slices = each[..., 0], each[..., 1:]
    return Family(over_slices(whole, slices, max_slices), whole, slices)


def proof(units: Ints, *, sticky: bool) -> Floats:
    """Log e-value against "worse than the margin" (or "not better") over all stages together: (..., K, G) -> (...)."""
    nats = to_nats(units)
    if sticky:
        return over_time(nats, sticky=True)
    return log_mean_exp(nats.sum(axis=-2), axis=-1)


def loudest_stage(units: Ints) -> int | None:
    """Which stage alone speaks louder than all together: units (K, G). None when it is the whole rollout."""
    nats = to_nats(units)
    start = log_mean_exp(nats.sum(axis=-2), axis=-1)
    each = log_mean_exp(nats, axis=-1)
    best = int(np.argmax(each))
    return None if start >= each[best] else best
