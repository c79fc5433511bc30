"""Every bet has mean at most one under its null, and flooring never adds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.stats import bets, tables
from pipelines.stats.evidence import HARM, PROOF
from pipelines.stats.mixture import AGAIN, ONCE
from pipelines.stats.nats import SCALE, floor_nats, to_nats

shares = st.floats(0.01, 0.99)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=50))
def test_flooring_never_exceeds_the_exact_log_and_loses_less_than_one_unit(values: list[float]) -> None:
    units = floor_nats(values)
    exact = np.asarray(values)
    assert (to_nats(units) <= exact).all()
    assert (exact - to_nats(units) < 1.5 / SCALE).all()


@given(shares, st.sampled_from([bets.EVENT_THETAS, bets.RATIO_THETAS]))
def test_the_bet_on_who_had_the_event_is_fair_when_the_arm_does_not_matter(share: float, thetas: np.ndarray) -> None:
    one = np.exp(to_nats(bets.assignment_factors(thetas, share, challenger=True)))
    zero = np.exp(to_nats(bets.assignment_factors(thetas, share, challenger=False)))
    mean = share * one + (1 - share) * zero
    assert (mean <= 1 + 1e-12).all()
    assert (mean > 1 - 1e-9).all()


@given(shares, st.sampled_from([0.5, 0.9, 0.99]), st.booleans(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_latency_bet_is_at_most_fair_for_every_challenger_that_is_not_slower(
    share: float, q: float, slower: bool, champion: float, towards: float
) -> None:
    """Exceedance rates of any size: the challenger's on the harmless side of the champion's."""
    challenger = champion * towards if slower else champion + (1 - champion) * towards
    mean = np.zeros(8)
    for arm, rate, chance in ((True, challenger, share), (False, champion, 1 - share)):
        for exceeds, p in ((True, rate), (False, 1 - rate)):
            factor = np.exp(to_nats(bets.exceedance_factors(q, share, slower=slower, exceeds=exceeds, challenger=arm)))
            mean += chance * p * factor
    assert (mean <= 1 + 1e-9).all()


@given(shares, st.floats(0.0, 0.2), st.floats(0.0005, 0.05), st.floats(0.0, 0.2))
def test_the_error_proof_is_at_most_fair_when_the_challenger_is_worse_by_the_margin(
    share: float, rate: float, margin: float, beyond: float
) -> None:
    worse = rate + margin + beyond
    table = np.exp(to_nats(tables.assigned_events(share, margin)[:4, PROOF]))
    chances = np.array([(1 - share) * (1 - rate), (1 - share) * rate, share * (1 - worse), share * worse])
    assert (chances @ table <= 1 + 1e-9).all()
    pairs = np.exp(to_nats(tables.paired_events(margin)[:4, PROOF]))
    joint = np.array([(1 - worse) * (1 - rate), (1 - worse) * rate, worse * (1 - rate), worse * rate])
    assert (joint @ pairs <= 1 + 1e-9).all()


@given(st.floats(0.0, 1.0))
def test_the_coin_on_discordant_pairs_is_at_most_fair_for_equal_arms(rate: float) -> None:
    factors = np.exp(to_nats(tables.paired_events(None)[:4, HARM]))
    joint = np.array([(1 - rate) ** 2, rate * (1 - rate), rate * (1 - rate), rate**2])
    assert (joint @ factors <= 1 + 1e-12).all()


def test_a_mean_bet_stays_positive_at_its_bound() -> None:
    assert np.isfinite(to_nats(bets.mean_factors(np.array([-2.0, 0.0, 2.0]), 2.0))).all()


def test_the_error_bet_on_a_long_run_of_equal_arms_has_mean_one() -> None:
    """20,000 runs of 40 events at a share of 20 %: the mean e-value lies within 5 standard errors of one, or below."""
    rng = np.random.default_rng(11)
    one, zero = (to_nats(bets.assignment_factors(bets.EVENT_THETAS[:3], 0.2, challenger=arm)) for arm in (True, False))
    challenger = rng.binomial(40, 0.2, 20_000)[:, None]
    e_values = np.exp(challenger * one + (40 - challenger) * zero).mean(axis=1)
    assert e_values.mean() <= 1 + 5 * e_values.std() / np.sqrt(len(e_values))


@pytest.mark.parametrize(("flag", "columns"), [(tables.HARM_STATE, HARM), (tables.PROOF_STATE, PROOF)])
def test_an_outcome_of_a_unit_met_before_keeps_its_counts_and_loses_bets(flag: int, columns: slice) -> None:
    table = tables.assigned_events(0.3, 0.01)
    fresh, met, bet_on = (table[3 + flag * state] for state in (tables.FRESH, tables.MET_BEFORE, tables.BET_ON))
    assert (met[:7] == fresh[:7]).all()
    assert (bet_on[:7] == fresh[:7]).all()
    assert (met[columns][AGAIN] == fresh[columns][AGAIN]).all()
    assert fresh[columns].all()
    assert not met[columns][ONCE].any()
    assert not bet_on[columns].any()
