"""Made-up rollouts in the file format `slipway-gate/1`, healthy or with a fault, for tests, planning and benchmarks.

Three steps: what two equal arms would answer (`traffic.draw_world`), what a fault does to the challenger (`afflict`),
and what is logged of it (`tables_of`). One seed gives one rollout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.contracts.errors import ContractError
from pipelines.rollout.policy import Policy
from pipelines.rollout.traffic import Traffic, World, draw_world
from pipelines.stats.nats import Bools, Floats, Ints


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with the challenger, from request `begins` on, in all traffic or in one slice."""

    name: str = "none"
    error_rate: float | None = None
    """Share of requests that fail on top of those that fail anyway; `invalid_rate` likewise."""
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
