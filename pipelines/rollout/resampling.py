"""Rollouts made of a model's own logged traffic: blocks of it drawn with replacement (Kuensch 1989), both arms alike.

A block is a day, so what belongs together in time stays together: load, outages, drift within the day, label delays.
The champion's answers are arm 0. Arm 1 is a healthy challenger: errors and latencies are those of a request close by,
scores differ from the champion's by noise of the size that two releases differ by, put on both arms so that neither is
worse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipelines.rollout.base_rates import Answers
from pipelines.rollout.policy import Metric, Policy
from pipelines.rollout.traffic import START_US, World
from pipelines.stats.losses import OF_PROBABILITIES, RANK, loss_values
from pipelines.stats.nats import Floats, Ints

DAY_US = 86_400_000_000
LEAST_BLOCKS = 5
"""Below so many logged days the log is cut into this many blocks of equal numbers of requests."""
NEAR = 20
"""How far away, in requests, the one lies whose latency and error the other arm gets."""
WHOLE = "all"


class Log(NamedTuple):
    """Logged answers ready to be drawn from: `starts` of the blocks, codes of units and of each slicing, the noise that
    two releases differ by (in logits for probabilities), whether scores are probabilities.
    """

    answers: Answers
    starts: Ints
    units: Ints
    slicings: dict[str, tuple[Ints, tuple[str, ...]]]
    noise: float
    probabilities: bool


def prepared(answers: Answers, policy: Policy, paired_sd: float | None) -> Log:
    """The log in blocks. `paired_sd`: the standard deviation of two releases' losses on the same request."""
    size = len(answers.event_us)
    day = answers.event_us // DAY_US
    starts = np.flatnonzero(np.r_[True, day[1:] != day[:-1]])
    if len(starts) < LEAST_BLOCKS:
        starts = np.unique(np.linspace(0, size, LEAST_BLOCKS + 1).astype(np.int64)[:-1])
    units = np.unique(np.asarray(answers.unit, dtype=str), return_inverse=True)[1] if answers.unit else np.arange(size)
    slicings = {}
    for name in policy.slices:
        values = [row.get(name, "") for row in answers.slices] if answers.slices else [""] * size
        labels, codes = np.unique(np.asarray(values, dtype=str), return_inverse=True)
        slicings[name] = (codes.astype(np.int64), tuple(str(label) for label in labels))
    probabilities = policy.score_range is not None and policy.score_range == (0.0, 1.0)
    metric = next((m for m in policy.metrics if m.kind == "paired_loss" and m.loss != RANK), None)
    noise = _noise(answers, metric, paired_sd, probabilities=probabilities) if metric is not None else 0.0
    return Log(answers, starts, units.astype(np.int64), slicings, noise, probabilities)


def resample(log: Log, requests: int, rng: np.random.Generator) -> tuple[World, Ints]:
    """A healthy world of so many requests, and the logged request behind each."""
    ends = np.r_[log.starts[1:], len(log.answers.event_us)]
    rows, times, clock, count = [], [], START_US, 0
    while count < requests:
        block = int(rng.integers(len(log.starts)))
        taken = np.arange(log.starts[block], ends[block])
        event = log.answers.event_us[taken]
        begin = int(event[0]) // DAY_US * DAY_US if len(log.starts) > LEAST_BLOCKS else int(event[0])
        rows.append(taken)
        times.append(clock + event - begin)
        # The next block begins where this one's day (or its last request, and a usual gap) is over.
        gap = max(int(np.diff(event).mean()) if len(event) > 1 else 1, 1)
        clock += DAY_US if len(log.starts) > LEAST_BLOCKS else int(event[-1]) - begin + gap
        count += len(taken)
    row = np.concatenate(rows)[:requests]
    return _world(log, row, np.concatenate(times)[:requests], rng), row


def _world(log: Log, row: Ints, ts: Ints, rng: np.random.Generator) -> World:
    answers, n = log.answers, len(row)
    near = np.clip(np.arange(n) + rng.integers(-NEAR, NEAR + 1, n), 0, n - 1)
    arms = np.stack([row, row[near]], axis=1)
    # Whether an arm has no valid answer is told apart from its score, which both arms need.
    usual = float(np.nanmedian(answers.score))
    filled = np.where(np.isfinite(answers.score[row]), answers.score[row], usual)
    score = perturbed(filled, log.noise, rng, probabilities=log.probabilities)
    failed = answers.failed[arms]
    part, slices = next(iter(log.slicings.values()), (np.zeros(len(answers.event_us), dtype=np.int64), (WHOLE,)))
    label_us, kpi_us = (np.asarray(us, dtype=np.int64) for us in (answers.label_us, answers.kpi_us))
    asked = answers.event_us[row]
    return World(
        ts=ts,
        part=part[row],
        slices=slices,
        unit=log.units[row],
        failed=failed,
        invalid=~np.isfinite(answers.score)[arms] & ~failed,
        latency_ms=np.maximum(answers.latency_ms[arms], 1e-3),
        score=score,
        label=answers.label[row],
        label_at=ts + np.maximum(label_us[row] - asked, 0),
        kpi=answers.kpi[row],
        kpi_at=ts + np.maximum(kpi_us[row] - asked, 0),
    )


def perturbed(score: Floats, noise: float, rng: np.random.Generator, *, probabilities: bool) -> Floats:
    """(n, 2) scores of two releases that are as good as each other and differ by `noise`."""
    moved = rng.normal(0.0, noise / np.sqrt(2.0), (len(score), 2)) if noise else np.zeros((len(score), 2))
    if not probabilities:
        return np.asarray(score[:, None] + moved)
    inside = np.clip(score, 1e-6, 1.0 - 1e-6)
    logit = np.log(inside / (1.0 - inside))[:, None] + moved
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _noise(answers: Answers, metric: Metric, paired_sd: float | None, *, probabilities: bool) -> float:
    """The noise at which the losses of two arms differ by `paired_sd` (unknown: by half the loss's own spread)."""
    known = np.isfinite(answers.score) & np.isfinite(answers.label)
    score, label = answers.score[known][-5_000:], answers.label[known][-5_000:]
    kind = metric.loss
    if not len(score) or kind == RANK:
        return 0.0

    def losses(of: Floats) -> Floats:
        return loss_values(kind, of, label, clip=metric.clip, cap=metric.cap, q=metric.q)

    wanted = paired_sd or 0.5 * float(losses(score).std())

    def spread(noise: float) -> float:
        arms = perturbed(score, noise, np.random.default_rng(0), probabilities=probabilities)
        return float((losses(arms[:, 1]) - losses(arms[:, 0])).std())

    low, high = 0.0, (8.0 if kind in OF_PROBABILITIES else 4.0 * float(np.abs(label - score).std() + 1e-9))
    for _ in range(20):
        middle = (low + high) / 2.0
        low, high = (middle, high) if spread(middle) < wanted else (low, middle)
    return high
