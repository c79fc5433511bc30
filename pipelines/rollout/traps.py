"""A healthy trap put on any traffic, a model's own as well: what fools simpler judges happens to both arms alike, or
for reasons that are not the challenger's.
"""

from __future__ import annotations

import numpy as np

from pipelines.rollout.traffic import Traffic, World, middle_tenths, slow_noise
from pipelines.stats.nats import Floats

_USUAL = Traffic()
"""What the catalogue's traps differ from."""
_MATURITY_S = 3600.0
"""The catalogue's label maturity, of which its label delays are a part."""


def beset(
    world: World, trap: Traffic, sizes: list[int], rng: np.random.Generator, *, first: int = 0, maturity_s: float
) -> World:
    """`world` with what the trap does; `sizes` are the requests of its stages, and live traffic begins with request
    `first`. Both arms' scores are probabilities or both are numbers; a better model errs by the mean of both arms.
    """
    n = len(world.ts)
    wave = trap.drift * np.sin(np.arange(n) / trap.wave * 2.0 * np.pi)
    failed = world.failed & (rng.random((n, 2)) < np.exp(np.minimum(wave, 0.0))[:, None])
    more = world.failed.mean() * np.expm1(np.maximum(wave, 0.0))
    failed |= rng.random((n, 2)) < more[:, None]
    middle = middle_tenths(sizes)
    failed[middle] |= rng.random((int(middle.sum()), 2)) < trap.outage
    failed |= (rng.random(int(world.unit.max()) + 1) < trap.sick_units)[world.unit][:, None]
    latency = world.latency_ms * np.exp(wave)[:, None]
    latency[middle] *= trap.spike
    if trap.arm_noise:
        latency *= np.exp(trap.arm_noise * slow_noise(rng, world.ts))
    cold = slice(first, first + trap.cold_start)
    failed[cold, 1] |= rng.random(len(failed[cold])) < 0.5
    latency[cold, 1] *= 10.0
    score = world.score.copy()
    if trap.challenger_noise is not None:
        score[:, 1] = score.mean(axis=1)
    return _labelled(world, trap, rng, maturity_s)._replace(
        failed=failed, latency_ms=latency, score=score, kpi=world.kpi + wave * _spread(world.kpi)
    )


def _labelled(world: World, trap: Traffic, rng: np.random.Generator, maturity_s: float) -> World:
    label, label_at = world.label, world.label_at
    if trap.labelled < _USUAL.labelled:
        label = np.where(rng.random(len(label)) < trap.labelled, label, np.nan)
    if trap.label_delay_s != _USUAL.label_delay_s:
        wait_us = trap.label_delay_s / _MATURITY_S * maturity_s * 1e6
        label_at = world.ts + rng.exponential(wait_us, len(label)).astype(np.int64)
    if trap.early_positives:
        middle = np.nanmean(label) if np.isfinite(label).any() else 0.0
        soon = world.ts + (0.02 * (label_at - world.ts)).astype(np.int64)
        label_at = np.where(label > middle, soon, label_at)
    return world._replace(label=label, label_at=label_at)


def _spread(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.std()) / 2.0 if len(known) else 0.0
