"""Made-up traffic: what two equally good arms would answer, request by request.

It drifts by the hour; latencies are heavy-tailed and autocorrelated; labels and KPIs arrive late.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np

from pipelines.stats.nats import Bools, Floats, Ints

START_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What the champion lives in."""

    requests_per_s: float = 2.0
    error_rate: float = 0.001
    invalid_rate: float = 0.0002
    latency_ms: float = 20.0
    latency_spread: float = 0.4
    positive_rate: float = 0.25
    model_noise: float = 0.35
    """Standard deviation, in logits, of what one model knows and the other does not."""
    challenger_noise: float | None = None
    """The challenger's own; below `model_noise` it is the better model."""
    kpi_mean: float = 5.0
    kpi_sd: float = 2.0
    slices: tuple[str, ...] = ("a", "b", "c", "d")
    label_delay_s: float = 900.0
    labelled: float = 0.95
    shadowing: bool = False
    """Both arms score every request of the canaries too, as the gateway lets them; only one is served."""
    units: int = 0
    """Number of sticky units; 0 draws the arm for each request."""
    sick_units: float = 0.0
    """Share of units of which every request fails, whoever answers."""
    outage: float = 0.0
    """Error rate of both arms during the middle tenth of every stage."""
    spike: float = 1.0
    """Factor on both arms' latency during the middle tenth of every stage."""
    arm_noise: float = 0.0
    """Spread of a slow noise in log latency that each arm has for itself (its own pods)."""
    cold_start: int = 0
    """Requests from the start of the rollout in which the challenger fails half the time and is ten times slower."""
    early_positives: bool = False
    """Positive labels arrive at once, negative ones at the usual delay."""
    drift: float = 0.0
    """Both arms' errors, latencies, labels and KPI rise and fall together by up to this much (in logs)."""
    wave: int = 20_000
    """Requests in one wave of the drift."""


class World(NamedTuple):
    """n requests as two healthy arms would answer them; columns of (n, 2) are champion, challenger.

    `ts` and the arrivals are event times in microseconds; `part` are codes of `slices`; a label or KPI that never comes
    is NaN.
    """

    ts: Ints
    part: Ints
    slices: tuple[str, ...]
    unit: Ints
    failed: Bools
    invalid: Bools
    latency_ms: Floats
    score: Floats
    label: Floats
    label_at: Ints
    kpi: Floats
    kpi_at: Ints


def draw_world(sizes: list[int], traffic: Traffic, rng: np.random.Generator) -> World:
    """Made-up traffic through stages of these sizes."""
    n = sum(sizes)
    index = np.arange(n)
    ts = START_US + np.cumsum(rng.exponential(1e6 / traffic.requests_per_s, n)).astype(np.int64) + index
    part = rng.integers(0, len(traffic.slices), n)
    unit = rng.integers(0, traffic.units, n) if traffic.units else index
    weather = np.cumsum(rng.normal(0.0, 0.01, n))
    weather -= np.linspace(0.0, weather[-1], n)
    wave = traffic.drift * np.sin(index / traffic.wave * 2.0 * np.pi)
    truth = rng.normal(np.log(traffic.positive_rate / (1 - traffic.positive_rate)), 1.0, n) + 0.3 * np.tanh(weather)
    truth += wave
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(-truth))).astype(float)
    own = traffic.model_noise if traffic.challenger_noise is None else traffic.challenger_noise
    logits = truth[:, None] + rng.standard_normal((n, 2)) * np.array([traffic.model_noise, own])

    error_rate = np.repeat(traffic.error_rate * np.exp(wave), 2).reshape(n, 2)
    middle = middle_tenths(sizes)
    if traffic.outage:
        error_rate[middle] = traffic.outage
    if traffic.sick_units and traffic.units:
        error_rate[(rng.random(traffic.units) < traffic.sick_units)[unit]] = 1.0
    error_rate[: traffic.cold_start, 1] = 0.5
    latency = _latency(rng, n, traffic)
    latency *= np.exp(wave)[:, None]
    latency[middle] *= traffic.spike
    latency[: traffic.cold_start, 1] *= 10.0
    if traffic.arm_noise:
        latency *= np.exp(traffic.arm_noise * slow_noise(rng, ts))
    wait = rng.exponential(traffic.label_delay_s * 1e6, n)
    if traffic.early_positives:
        wait = np.where(label > 0, 0.02 * wait, wait)
    kpi = rng.normal(traffic.kpi_mean, traffic.kpi_sd, n) + 0.5 * np.tanh(weather) + wave
    return World(
        ts=ts,
        part=part,
        slices=traffic.slices,
        unit=unit,
        failed=rng.random((n, 2)) < error_rate,
        invalid=rng.random((n, 2)) < traffic.invalid_rate,
        latency_ms=latency,
        score=1.0 / (1.0 + np.exp(-logits)),
        label=np.where(rng.random(n) < traffic.labelled, label, np.nan),
        label_at=ts + wait.astype(np.int64),
        kpi=np.clip(kpi, 0.0, 2.0 * traffic.kpi_mean),
        kpi_at=ts + rng.exponential(60e6, n).astype(np.int64),
    )


def middle_tenths(sizes: list[int]) -> Bools:
    """The requests in the middle tenth of stages of these sizes."""
    return np.concatenate([(np.arange(size) >= 0.45 * size) & (np.arange(size) < 0.55 * size) for size in sizes])


def slow_noise(rng: np.random.Generator, ts: Ints) -> Floats:
    """(n, 2) noise of unit spread that stays for 100 seconds, apart in each arm."""
    step = (ts - ts[0]) // 100_000_000
    noise: Floats = rng.normal(0.0, 1.0, (int(step[-1]) + 1, 2))[step]
    return noise


def _latency(rng: np.random.Generator, n: int, traffic: Traffic) -> Floats:
    """(n, 2) milliseconds: log-normal body, Pareto tail, a load both arms share."""
    load = np.convolve(rng.standard_normal(n + 49), np.ones(50) / 50**0.5, mode="valid") * 0.1
    body = traffic.latency_ms * np.exp(rng.standard_normal((n, 2)) * traffic.latency_spread + load[:, None])
    tail = rng.random((n, 2)) < 0.02
    body[tail] *= 1.0 + rng.pareto(2.5, int(tail.sum()))
    return body
