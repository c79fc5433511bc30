"""Evidence vectors of observations that can fall in a few classes only: one table row a class.

What each row holds is laid out in `evidence.COLUMNS`. Classes are numbered so that the fold can compute them with sums.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipelines.stats import bets
from pipelines.stats.evidence import HARM, MOMENTS, PROOF, WIDTH
from pipelines.stats.mixture import ONCE
from pipelines.stats.nats import MOMENT, Floats, Ints, quantise, quantise_up

N, N1, N0, Y1, Y0, S, V = range(len(MOMENTS))

FRESH, MET_BEFORE, BET_ON = range(3)
"""What a sticky unit is to a family of bets: new in the rollout, new in its stage, or already bet on there."""
HARM_STATE, PROOF_STATE = 4, 12
"""A class is `class of the outcome + HARM_STATE * state for the harm bets + PROOF_STATE * state for the proof's`."""
CLASSES = 36


def _with_silent(table: Ints) -> Ints:
    """(4, WIDTH) -> (CLASSES, WIDTH): the same outcomes by what their unit is to both families of bets."""
    silent = np.tile(table, (9, 1)).reshape(3, 3, 4, WIDTH)
    for states, columns in ((silent.swapaxes(0, 1), HARM), (silent, PROOF)):
        states[MET_BEFORE, ..., columns][..., ONCE] = 0
        states[BET_ON, ..., columns] = 0
    return silent.reshape(CLASSES, WIDTH)


LEVELS = 10
"""A class of an event is `CLASSES * level + class`: at level k the proof bets 2**-k of what it bets when events are
rare.
"""


def caution(rate: Floats, margin: float | None) -> Ints:
    """(n,) levels for recent event rates: the best bet on a margin shrinks like margin / rate (an outage of both
    arms).
    """
    if margin is None:
        return np.zeros(len(rate), dtype=np.int64)
    levels = np.floor(np.log2(np.maximum(rate / (4.0 * margin), 1.0)))
    return np.minimum(levels, LEVELS - 1).astype(np.int64)


def _levelled(table: Ints, gains: Floats, largest: float) -> Ints:
    """(4, WIDTH) with the gains of each class -> (LEVELS * CLASSES, WIDTH) with proofs at every level of caution."""
    parts = []
    for level in range(LEVELS):
        part = table.copy()
        part[:, PROOF] = bets.mean_factors(gains, largest * 2.0**level)
        parts.append(_with_silent(part))
    return np.concatenate(parts)


def _moments(*, n1: int, n0: int, y1: float, y0: float, effect: float) -> Ints:
    row = np.zeros(WIDTH, dtype=np.int64)
    row[N], row[N1], row[N0] = 1, n1, n0
    row[Y1], row[Y0] = int(y1 * MOMENT), int(y0 * MOMENT)
    row[S], row[V] = quantise(effect), quantise_up(effect * effect)
    return row


def assigned_effect(share: float, outcome: float, *, challenger: bool) -> float:
    """Challenger minus champion, unbiased from one assigned request: y / share, or -y / (1 - share)."""
    return outcome / share if challenger else -outcome / (1.0 - share)


@cache
def assigned_events(share: float, margin: float | None) -> Ints:
    """(CLASSES, WIDTH), class `2 * challenger + event` (+ the flags above): events of requests whose arm was drawn.

    Harm: the bet on who had the event. Proof: against "the event rate is worse by `margin` or more" (absolute), at
    every level of `caution` (LEVELS * CLASSES rows).
    """
    table, gains = np.zeros((4, WIDTH), dtype=np.int64), np.zeros(4)
    for arm in (0, 1):
        for event in (0, 1):
            effect = assigned_effect(share, event, challenger=bool(arm))
            row = _moments(n1=arm, n0=1 - arm, y1=arm * event, y0=(1 - arm) * event, effect=effect)
            if event:
                row[HARM] = bets.assignment_factors(bets.EVENT_THETAS, share, challenger=bool(arm))
            gains[2 * arm + event] = (margin or 0.0) - effect
            table[2 * arm + event] = row
    return _with_silent(table) if margin is None else _levelled(table, gains, 1.0 / share - margin)


@cache
def paired_events(margin: float | None) -> Ints:
    """(CLASSES, WIDTH), class `2 * challenger's event + champion's event`: a fair coin on discordant pairs."""
    table, gains = np.zeros((4, WIDTH), dtype=np.int64), np.zeros(4)
    for one in (0, 1):
        for zero in (0, 1):
            effect = float(one - zero)
            row = _moments(n1=1, n0=1, y1=one, y0=zero, effect=effect)
            if one != zero:
                row[HARM] = bets.assignment_factors(bets.EVENT_THETAS, 0.5, challenger=bool(one))
            gains[2 * one + zero] = (margin or 0.0) - effect
            table[2 * one + zero] = row
    return _with_silent(table) if margin is None else _levelled(table, gains, 1.0 - margin)


@cache
def assignments(share: float) -> Ints:
    """(CLASSES, WIDTH), class `3 * challenger` (0 or 3): was the arm drawn with the declared share, both ways."""
    table = np.zeros((4, WIDTH), dtype=np.int64)
    for arm in (0, 1):
        row = _moments(n1=arm, n0=1 - arm, y1=arm, y0=1 - arm, effect=arm - share)
        row[HARM] = bets.assignment_factors(bets.RATIO_THETAS, share, challenger=bool(arm))
        table[3 * arm] = row
    return _with_silent(table)


@cache
def assigned_exceedances(q: float, share: float) -> Ints:
    """(CLASSES, WIDTH), class `2 * challenger + exceeds`: latency above the running q-quantile. Harm only."""
    table = np.zeros((4, WIDTH), dtype=np.int64)
    for arm in (0, 1):
        for above in (0, 1):
            effect = assigned_effect(share, above, challenger=bool(arm))
            row = _moments(n1=arm, n0=1 - arm, y1=arm * above, y0=(1 - arm) * above, effect=effect)
            row[HARM] = bets.exceedance_factors(q, share, slower=True, exceeds=bool(above), challenger=bool(arm))
            table[2 * arm + above] = row
    return _with_silent(table)


@cache
def paired_exceedances(q: float) -> Ints:
    """(CLASSES, WIDTH), class `2 * challenger exceeds + champion exceeds`: a coin on discordant pairs. Harm only."""
    table = np.zeros((4, WIDTH), dtype=np.int64)
    for one in (0, 1):
        for zero in (0, 1):
            row = _moments(n1=1, n0=1, y1=one, y0=zero, effect=float(one - zero))
            if one != zero:
                thetas = bets.exceedance_thetas(q, slower=True)
                row[HARM] = bets.assignment_factors(thetas, 0.5, challenger=bool(one))
            table[2 * one + zero] = row
    return _with_silent(table)


@cache
def exceedance_counts(share: float | None) -> Ints:
    """(CLASSES, WIDTH), classes as `assigned_exceedances` (or `paired_exceedances` for None): moments alone, no bet."""
    table = (paired_exceedances(0.5) if share is None else assigned_exceedances(0.5, share)).copy()
    table[:, HARM] = 0
    return table


@cache
def scaled_exceedances(q: float, share: float) -> Ints:
    """(CLASSES, WIDTH), class `2 * challenger + exceeds`, its latency divided by 1 + margin. Proof only."""
    table = np.zeros((4, WIDTH), dtype=np.int64)
    for arm in (0, 1):
        for above in (0, 1):
            table[2 * arm + above, PROOF] = bets.exceedance_factors(
                q, share, slower=False, exceeds=bool(above), challenger=bool(arm)
            )
    return _with_silent(table)
