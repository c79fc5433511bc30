"""Log e-values as integers: units of 2**-40 nats.

Integers add in any order to the same bytes, which floats do not. Each increment is floored, so the sum never exceeds
the exact log e-value and Ville's bound P(sup e >= 1/alpha) <= alpha is kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.contracts.errors import ContractError

SCALE = 1 << 40
"""Units in one nat."""
MOMENT = 1 << 24
"""Units in 1.0 of a quantised observation (sums of losses, KPIs, effects and their squares)."""
LIMIT = 1 << 62
"""No sum may reach this: 4.2 million nats, or 2.7e11 units of an observation."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def floor_nats(log_factors: npt.ArrayLike) -> Ints:
    """The increments in units of 2**-40 nats, rounded towards minus infinity. Values must be finite and below 2**22."""
    return np.floor(np.asarray(log_factors, dtype=np.float64) * SCALE).astype(np.int64)


def to_nats(units: npt.ArrayLike) -> Floats:
    """Nats as floats of a sum of increments."""
    return np.asarray(units, dtype=np.float64) / SCALE


def quantise(values: npt.ArrayLike) -> Ints:
    """Observations in units of 2**-24, to the nearest."""
    return np.rint(np.asarray(values, dtype=np.float64) * MOMENT).astype(np.int64)


def quantise_up(values: npt.ArrayLike) -> Ints:
    """Observations in units of 2**-24, rounded up: a variance that is never understated."""
    return np.ceil(np.asarray(values, dtype=np.float64) * MOMENT).astype(np.int64)


def checked(total: Ints) -> Ints:
    """`total` itself. Raises ContractError when a sum came near the end of 64 bits."""
    if total.size and (int(total.max()) >= LIMIT or int(total.min()) <= -LIMIT):
        raise ContractError("a sum of evidence", got="more than 2**62 units", expected="less: end this rollout")
    return total
