"""Made-up rollouts in the file format `slipway-gate/1`, healthy or with a fault, for tests, planning and benchmarks.

Three steps: what the world does to two equal arms (`draw_world`: traffic that drifts by the hour, heavy-tailed and
autocorrelated latencies, late labels and KPIs), what a fault does to the challenger (`afflict`), and what is logged of
it (`tables_of`). One seed gives one rollout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
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
    """Both arms' errors, latencies, labels and KPI rise and fall together by up to this much (in logs), in waves of
    20,000 requests.
    """


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the challenger, from request `begins` on, in all traffic or in one slice."""

    name: str = "none"
    error_rate: float | None = None
    invalid_rate: float | None = None
    latency_factor: float = 1.0
    tail_factor: float = 1.0
    logit_shift: float = 0.0
    logit_noise: float = 0.0
    constant: bool = False
    """Every score is the mean score."""
    kpi_factor: float = 1.0
    lost: float = 0.0
    doubled: float = 0.0
    share_factor: float = 1.0
    slice: str | None = None
    only_served: bool = False
    """The fault shows only where the challenger's answer is served (a canary)."""
    begins: int = 0
    grows: bool = False
    """It grows evenly from nothing at `begins` to its full size at the end (a leak)."""
    bursts: int = 0
    """It comes in the first twentieth of every so many requests; 0 is always."""


HEALTHY = Fault()


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


class Arms(NamedTuple):
    """Stage, declared share (NaN where both answer) and drawn arm (0, 1, or 2 for both) of n requests."""

    stage: Ints
    share: Floats
    arm: Ints

    @property
    def drawn(self) -> Bools:
        """Where one arm alone is asked."""
        drawn: Bools = self.arm < 2
        return drawn


class Logged(NamedTuple):
    """The world as the challenger has changed it, and which answers came how often: (n, 2) of 0, 1 or 2."""

    world: World
    answers: Ints


def simulate(
    policy: Policy,
    *,
    seed: int,
    traffic: Traffic | None = None,
    fault: Fault = HEALTHY,
    rollout_id: int = 0,
    world: World | None = None,
) -> dict[str, pa.Table]:
    """One whole rollout under `policy` as the four tables; every stage has its declared number of requests.

    `world` stands in for made-up traffic; it has as many requests as the stages. Raises ContractError for a stage
    without `requests`.
    """
    traffic = traffic or Traffic()
    rng = np.random.default_rng(seed)
    sizes = stage_sizes(policy)
    made = draw_world(sizes, traffic, rng) if world is None else world
    arms = draw_arms(policy, sizes, made.unit, fault, rng, sticky=traffic.units > 0 or policy.unit == "unit")
    logged = afflict(made, arms, fault, rng, shadowing=traffic.shadowing)
    return tables_of(logged, arms, [stage.name for stage in policy.stages], rollout_id)


def stage_sizes(policy: Policy) -> list[int]:
    """The number of requests of each stage. Raises ContractError for a stage that does not say."""
    sizes = []
    for stage in policy.stages:
        if stage.requests is None:
            raise ContractError(f"requests of stage {stage.name}", got="nothing", expected="a number to simulate")
        sizes.append(stage.requests)
    return sizes


def draw_world(sizes: list[int], traffic: Traffic, rng: np.random.Generator) -> World:
    """Made-up traffic through stages of these sizes."""
    n = sum(sizes)
    index = np.arange(n)
    ts = START_US + np.cumsum(rng.exponential(1e6 / traffic.requests_per_s, n)).astype(np.int64) + index
    part = rng.integers(0, len(traffic.slices), n)
    unit = rng.integers(0, traffic.units, n) if traffic.units else index
    weather = np.cumsum(rng.normal(0.0, 0.01, n))
    weather -= np.linspace(0.0, weather[-1], n)
    wave = traffic.drift * np.sin(index / 20_000.0 * 2.0 * np.pi)
    truth = rng.normal(np.log(traffic.positive_rate / (1 - traffic.positive_rate)), 1.0, n) + 0.3 * np.tanh(weather)
    truth += wave
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(-truth))).astype(float)
    own = traffic.model_noise if traffic.challenger_noise is None else traffic.challenger_noise
    logits = truth[:, None] + rng.standard_normal((n, 2)) * np.array([traffic.model_noise, own])

    error_rate = np.repeat(traffic.error_rate * np.exp(wave), 2).reshape(n, 2)
    middle = np.concatenate([(np.arange(size) >= 0.45 * size) & (np.arange(size) < 0.55 * size) for size in sizes])
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
        latency *= np.exp(traffic.arm_noise * _slow_noise(rng, n))
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


def draw_arms(
    policy: Policy, sizes: list[int], unit: Ints, fault: Fault, rng: np.random.Generator, *, sticky: bool
) -> Arms:
    """The router's draws; a fault may give the challenger another share than declared."""
    stage = np.repeat(np.arange(len(sizes)), sizes)
    share = np.array([each.share if each.randomised else np.nan for each in policy.stages], dtype=float)[stage]
    place = rng.random(int(unit.max()) + 1)[unit] if sticky else rng.random(len(stage))
    drawn = ~np.isnan(share)
    challenger = drawn & (place < np.where(drawn, share, 0.0) * fault.share_factor)
    return Arms(stage, share, np.where(drawn, challenger, 2).astype(np.int64))


def severity(world: World, arms: Arms, fault: Fault) -> Floats:
    """(n,) how much of the fault each request meets, from 0 to 1."""
    n = len(world.ts)
    index = np.arange(n)
    size = (index >= fault.begins).astype(float)
    if fault.grows:
        size *= (index - fault.begins) / max(n - fault.begins, 1)
    if fault.bursts:
        size[index % fault.bursts >= fault.bursts // 20] = 0.0
    if fault.slice is not None:
        size[world.part != world.slices.index(fault.slice)] = 0.0
    if fault.only_served:
        size[~arms.drawn] = 0.0
    return size


def afflict(world: World, arms: Arms, fault: Fault, rng: np.random.Generator, *, shadowing: bool = False) -> Logged:
    """What a challenger with this fault does to the world. Arms that were not drawn answer only with `shadowing`."""
    n = len(world.ts)
    challenger, asked = arms.arm == 1, np.stack([arms.arm != 1, arms.arm != 0], axis=1).astype(np.int64)
    if shadowing:
        asked[:] = 1
    if fault == HEALTHY:
        return Logged(world, asked)
    size = severity(world, arms, fault)
    sick = size > 0.0
    failed, invalid = world.failed.copy(), world.invalid.copy()
    for column, rate in ((failed, fault.error_rate), (invalid, fault.invalid_rate)):
        if rate is not None:
            column[:, 1] = np.where(sick & ~column[:, 1], rng.random(n) < size * rate, column[:, 1])
    latency = world.latency_ms.copy()
    slow = sick & (rng.random(n) < 0.02)
    latency[:, 1] *= fault.latency_factor**size * np.where(slow, fault.tail_factor, 1.0)
    score = world.score.copy()
    if fault.logit_shift or fault.logit_noise:
        probability = np.clip(score[:, 1], 1e-9, 1.0 - 1e-9)
        logit = np.log(probability / (1.0 - probability))
        logit += size * (fault.logit_shift + rng.normal(0.0, 1.0, n) * fault.logit_noise)
        score[:, 1] = np.where(sick, 1.0 / (1.0 + np.exp(-logit)), score[:, 1])
    if fault.constant:
        score[sick, 1] = np.nanmean(world.score[:, 0])
    kpi = np.where(challenger & sick, world.kpi * fault.kpi_factor**size, world.kpi)
    answers = asked.copy()
    answers[:, 1] *= 1 - (rng.random(n) < size * fault.lost)
    answers[:, 1] *= 1 + (rng.random(n) < size * fault.doubled)
    changed = world._replace(failed=failed, invalid=invalid, latency_ms=latency, score=score, kpi=kpi)
    return Logged(changed, answers)


def tables_of(logged: Logged, arms: Arms, stages: list[str], rollout_id: int = 0) -> dict[str, pa.Table]:
    """The four tables; responses, labels and KPIs in order of their time."""
    world, n = logged.world, len(logged.world.ts)
    request = np.arange(n)
    place = np.repeat(np.arange(2 * n), logged.answers.reshape(-1))
    row, side = np.divmod(place, 2)
    repeated = np.r_[False, place[1:] == place[:-1]]
    when = world.ts[row] + (world.latency_ms[row, side] * 1000).astype(np.int64) + 1000 * repeated
    order = np.argsort(when, kind="stable")
    row, side, when = row[order], side[order], when[order]
    failed = world.failed[row, side]
    score = np.where(failed | world.invalid[row, side], np.nan, world.score[row, side])

    def late(times: Ints, name: str, values: Floats) -> pa.Table:
        index = np.flatnonzero(~np.isnan(values))
        index = index[np.argsort(times[index], kind="stable")]
        ids = _ids(len(index), rollout_id)
        return pa.table({"rollout_id": ids, "request_id": index, "ts": _timestamps(times[index]), name: values[index]})

    return {
        "assignments": pa.table(
            {
                "rollout_id": _ids(n, rollout_id),
                "seq": request,
                "request_id": request,
                "ts": _timestamps(world.ts),
                "stage": _words(arms.stage, stages),
                "arm": _words(arms.arm, ["champion", "challenger", "both"]),
                "share": pa.array(arms.share, from_pandas=True),
                "unit_id": world.unit,
                "slice": _words(world.part, list(world.slices)),
            }
        ),
        "responses": pa.table(
            {
                "rollout_id": _ids(len(row), rollout_id),
                "request_id": row,
                "arm": _words(side, ["champion", "challenger"]),
                "ts": _timestamps(when),
                "latency_ms": world.latency_ms[row, side].astype(np.float32),
                "status": _words(failed.astype(int), ["ok", "error"]),
                "score": score,
            }
        ),
        "labels": late(world.label_at, "label", world.label),
        "kpi": late(world.kpi_at, "value", world.kpi),
    }


def _timestamps(micros: np.ndarray[Any, Any]) -> pa.Array:
    return pa.array(micros.astype(np.int64), pa.timestamp("us", "UTC"))


def _words(values: np.ndarray[Any, Any], words: list[str]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(values.astype(np.int32)), pa.array(words))


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
    load = np.convolve(rng.standard_normal(n + 49), np.ones(50) / 50**0.5, mode="valid") * 0.1
    body = traffic.latency_ms * np.exp(rng.standard_normal((n, 2)) * traffic.latency_spread + load[:, None])
    tail = rng.random((n, 2)) < 0.02
    body[tail] *= 1.0 + rng.pareto(2.5, int(tail.sum()))
    return body
