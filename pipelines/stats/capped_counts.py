"""Exceedances of as many requests of one arm as of the other, counted up to a cap: a mean that is alike in both arms.

Rates of arms of different size have different shapes, so a cap on them would favour the larger arm. The expected capped
count of `drawn` requests, taken without replacement from all of an arm, has the same mean in both arms whenever their
requests are exchangeable; it needs no symmetry, and the cap bounds it, so that one may bet high on rare exceedances.
"""

from __future__ import annotations

import numpy as np

from pipelines.stats.nats import Floats, Ints


def capped_count(size: Ints, events: Ints, drawn: Ints, cap: Ints) -> Floats:
    """(n,) `E[min(K, cap)]`, K hypergeometric: events among `drawn` of `size` requests of which `events` are events.

    Needs 0 <= events <= size, 1 <= drawn <= size and cap >= 1. `E[min(K, cap)]` is the sum of P(K > j) over j < cap.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, float(size.max(initial=0)) + 1.0)))])

    def choose(n: Ints, k: Ints) -> Floats:
        held = (k >= 0) & (k <= n)
        n, k = np.where(held, n, 0), np.where(held, k, 0)
        return np.where(held, logs[n] - logs[k] - logs[n - k], -np.inf)

    total, reached = np.zeros(len(size)), np.ones(len(size))
    for j in range(int(cap.max(initial=0))):
        few = np.full_like(events, j)
        reached = reached - np.exp(choose(events, few) + choose(size - events, drawn - j) - choose(size, drawn))
        total += np.where(j < cap, np.clip(reached, 0.0, 1.0), 0.0)
    return total
