"""Made-up rollouts in the file format `slipway-gate/1`, healthy or with a fault, for tests, planning and benchmarks.

Traffic drifts by the hour; latencies are heavy-tailed and autocorrelated; labels and KPIs arrive late. One seed gives
one rollout. Both arms have the same distribution unless the `Fault` says otherwise.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.stats.nats import Floats

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
    kpi_mean: float = 5.0
    kpi_sd: float = 2.0
    slices: tuple[str, ...] = ("a", "b", "c", "d")
    label_delay_s: float = 900.0
    labelled: float = 0.95
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


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the challenger, from request `begins` on, in all traffic or in one slice."""

    name: str = "none"
    error_rate: float | None = None
    invalid_rate: float | None = None
    latency_factor: float = 1.0
    tail_factor: float = 1.0
    logit_shift: float = 0.0
    logit_noise: float = 0.0
    kpi_factor: float = 1.0
    lost: float = 0.0
    doubled: float = 0.0
    share_factor: float = 1.0
    slice: str | None = None
    only_served: bool = False
    """The fault shows only where the challenger's answer is served (a canary)."""
    begins: int = 0


HEALTHY = Fault()


def _timestamps(micros: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(micros.astype(np.int64), pa.timestamp("us", "UTC"))


def _words(values: np.ndarray[Any, Any], words: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int32)), pa.array(words))


def simulate(
    policy: Policy, *, seed: int, traffic: Traffic | None = None, fault: Fault = HEALTHY, rollout_id: int = 0
) -> dict[str, pa.Table]:
    """One whole rollout under `policy` as the four tables. Every stage has its declared number of requests.

    Raises ContractError for a stage without `requests`.
    """
    traffic = traffic or Traffic()
    rng = np.random.default_rng(seed)
    sizes = []
    for stage in policy.stages:
        if stage.requests is None:
            raise ContractError(f"requests of stage {stage.name}", got="nothing", expected="a number to simulate")
        sizes.append(stage.requests)
    n = sum(sizes)
    stage_of = np.repeat(np.arange(len(sizes)), sizes)
    share = np.array([stage.share if stage.randomised else np.nan for stage in policy.stages], dtype=float)[stage_of]
    drawn = ~np.isnan(share)

    ts = START_US + np.cumsum(rng.exponential(1e6 / traffic.requests_per_s, n)).astype(np.int64)
    ts += np.arange(n)
    part = rng.integers(0, len(traffic.slices), n)
    unit = rng.integers(0, traffic.units, n) if traffic.units else np.arange(n)
    place = rng.random(traffic.units)[unit] if traffic.units else rng.random(n)
    challenger = drawn & (place < np.where(drawn, share, 0.0) * fault.share_factor)
    arm = np.where(drawn, challenger, 2).astype(int)

    sick = np.arange(n) >= fault.begins
    if fault.slice is not None:
        sick &= part == traffic.slices.index(fault.slice)
    if fault.only_served:
        sick &= drawn
    weather = np.cumsum(rng.normal(0.0, 0.01, n))
    weather -= np.linspace(0.0, weather[-1], n)
    truth = rng.normal(np.log(traffic.positive_rate / (1 - traffic.positive_rate)), 1.0, n) + 0.3 * np.tanh(weather)
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(-truth))).astype(float)
    logits = np.stack([truth + rng.normal(0.0, traffic.model_noise, n) for _ in range(2)], axis=1)
    logits[:, 1] += sick * (fault.logit_shift + rng.normal(0.0, 1.0, n) * fault.logit_noise)
    score = 1.0 / (1.0 + np.exp(-logits))

    error_rate = np.full((n, 2), traffic.error_rate)
    invalid_rate = np.full((n, 2), traffic.invalid_rate)
    error_rate[sick, 1] = traffic.error_rate if fault.error_rate is None else fault.error_rate
    invalid_rate[sick, 1] = traffic.invalid_rate if fault.invalid_rate is None else fault.invalid_rate
    middle = np.concatenate([(np.arange(size) >= 0.45 * size) & (np.arange(size) < 0.55 * size) for size in sizes])
    if traffic.outage:
        error_rate[middle] = traffic.outage
    if traffic.sick_units and traffic.units:
        error_rate[(rng.random(traffic.units) < traffic.sick_units)[unit]] = 1.0
    cold = np.arange(n) < traffic.cold_start
    error_rate[cold, 1] = 0.5
    error = rng.random((n, 2)) < error_rate
    invalid = rng.random((n, 2)) < invalid_rate
    latency = _latency(rng, n, traffic)
    latency *= np.where(middle, traffic.spike, 1.0)[:, None] * np.where(
        np.stack([cold & False, cold], axis=1), 10.0, 1.0
    )
    if traffic.arm_noise:
        latency *= np.exp(traffic.arm_noise * _slow_noise(rng, n))
    slow = sick & (rng.random(n) < 0.02)
    latency[:, 1] *= np.where(sick, fault.latency_factor, 1.0) * np.where(slow, fault.tail_factor, 1.0)
    answered = np.stack([~drawn | ~challenger, ~drawn | challenger], axis=1)
    present = answered & ~np.stack([np.zeros(n, bool), sick & (rng.random(n) < fault.lost)], axis=1)
    doubled = present & np.stack([np.zeros(n, bool), sick & (rng.random(n) < fault.doubled)], axis=1)
    score = np.where(error | invalid, np.nan, score)

    row, side = np.nonzero(present)
    again, again_side = np.nonzero(doubled)
    row, side = np.concatenate([row, again]), np.concatenate([side, again_side])
    delay = (latency[row, side] * 1000).astype(np.int64) + np.concatenate(
        [np.zeros(len(row) - len(again), np.int64), np.full(len(again), 1000)]
    )
    when = ts[row] + delay
    order = np.argsort(when, kind="stable")
    row, side, when = row[order], side[order], when[order]

    labelled = rng.random(n) < traffic.labelled
    wait = rng.exponential(traffic.label_delay_s * 1e6, n)
    if traffic.early_positives:
        wait = np.where(label > 0, 0.02 * wait, wait)
    arrival = ts + wait.astype(np.int64)
    kpi = rng.normal(traffic.kpi_mean, traffic.kpi_sd, n) + 0.5 * np.tanh(weather)
    kpi = np.clip(np.where(challenger & sick, kpi * fault.kpi_factor, kpi), 0.0, 2 * traffic.kpi_mean)
    kpi_at = ts + rng.exponential(60e6, n).astype(np.int64)

    def late(times: np.ndarray[Any, Any], keep: np.ndarray[Any, Any], **columns: np.ndarray[Any, Any]) -> pa.Table:
        index = np.flatnonzero(keep)
        index = index[np.argsort(times[index], kind="stable")]
        fields = {name: pa.array(values[index]) for name, values in columns.items()}
        return pa.table(
            {"rollout_id": _ids(len(index), rollout_id), "request_id": index, "ts": _timestamps(times[index]), **fields}
        )

    names = [stage.name for stage in policy.stages]
    return {
        "assignments": pa.table(
            {
                "rollout_id": _ids(n, rollout_id),
                "seq": np.arange(n),
                "request_id": np.arange(n),
                "ts": _timestamps(ts),
                "stage": _words(stage_of, names),
                "arm": _words(arm, ["champion", "challenger", "both"]),
                "share": pa.array(share, from_pandas=True),
                "unit_id": unit,
                "slice": _words(part, list(traffic.slices)),
            }
        ),
        "responses": pa.table(
            {
                "rollout_id": _ids(len(row), rollout_id),
                "request_id": row,
                "arm": _words(side, ["champion", "challenger"]),
                "ts": _timestamps(when),
                "latency_ms": latency[row, side].astype(np.float32),
                "status": _words(error[row, side].astype(int), ["ok", "error"]),
                "score": score[row, side],
            }
        ),
        "labels": late(arrival, labelled, label=label),
        "kpi": late(kpi_at, np.ones(n, bool), value=kpi),
    }


def _ids(n: int, rollout_id: int) -> pa.Array:
    return pa.array(np.full(n, rollout_id, dtype=np.int32))


def _slow_noise(rng: np.random.Generator, n: int) -> Floats:
    """(n, 2) noise of unit spread that stays for about 200 requests, apart in each arm."""
    steps = -(-n // 200) + 1
    knots = rng.normal(0.0, 1.0, (steps, 2))
    noise: Floats = np.repeat(knots, 200, axis=0)[:n]
    return noise


def _latency(rng: np.random.Generator, n: int, traffic: Traffic) -> Floats:
    """(n, 2) milliseconds: log-normal body, Pareto tail, a load both arms share."""
    load = np.convolve(rng.normal(0.0, 1.0, n + 49), np.ones(50) / 50**0.5, mode="valid") * 0.1
    body = traffic.latency_ms * np.exp(rng.normal(0.0, traffic.latency_spread, (n, 2)) + load[:, None])
    tail: Floats = np.where(rng.random((n, 2)) < 0.02, 1.0 + rng.pareto(2.5, (n, 2)), 1.0)
    result: Floats = body * tail
    return result
