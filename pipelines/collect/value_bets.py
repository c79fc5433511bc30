"""Bets on how much: scores and losses of pairs, and the KPI of served answers."""

from __future__ import annotations

import numpy as np

from pipelines.collect.rank_pairs import RankPairs
from pipelines.collect.request_columns import CHALLENGER, Requests, drawn, take
from pipelines.collect.unit_bets import UnitBets
from pipelines.rollout.policy import Metric, Policy
from pipelines.stats import bets, tables
from pipelines.stats.centre import RunningCentre
from pipelines.stats.evidence import BETTER, HARM, PROOF, WIDTH
from pipelines.stats.losses import RANK, loss_range, loss_values
from pipelines.stats.nats import Floats, Ints, quantise, quantise_up
from pipelines.stats.postings import Count, Posting


class ValueBets:
    """What these bets need from the past: the champion's mean KPI, frozen per block, and requests without a partner."""

    def __init__(self, policy: Policy, units: UnitBets) -> None:
        self._units = units
        self._score_range = policy.score_range
        self._ranks = {metric.name: RankPairs() for metric in policy.metrics if metric.loss == RANK}
        self._centres = {metric.name: RunningCentre() for metric in policy.metrics if metric.kind == "mean"}

    def scores(self, metric: Metric, rows: Requests, at: Ints) -> Posting:
        """Shift (signed) or disagreement (absolute) of the scores of one request, with a bet where a tolerance is
        given.
        """
        one, zero = rows["score"][:, 1], rows["score"][:, 0]
        effect = np.abs(one - zero) if metric.kind == "paired_abs" else one - zero
        posting = _moments(metric.name, rows, at, one, zero, effect)
        increments, bounds = posting.rows, self._score_range
        assert increments is not None
        relative, absolute = metric.tolerance_rel or 0.0, metric.tolerance_abs or 0.0
        if bounds is not None and relative + absolute > 0.0:
            level = max(abs(bounds[0]), abs(bounds[1]))
            allowed = absolute + relative * np.abs(zero)
            largest = absolute + relative * level
            if metric.kind == "paired_abs":
                increments[:, HARM] = bets.mean_factors(effect - allowed, largest)
            else:
                largest += bounds[1] - bounds[0]
                half = HARM.start + (HARM.stop - HARM.start) // 2
                increments[:, HARM.start : half] = bets.mean_factors(effect - allowed, largest)[:, ::2]
                increments[:, half : HARM.stop] = bets.mean_factors(-effect - allowed, largest)[:, ::2]
        self._units.silence(f"{metric.name}/scores", rows, increments)
        return posting

    def loss(self, metric: Metric, rows: Requests, at: Ints) -> Posting:
        """Losses of both arms on one request whose label is known; the rank loss on a pair of them."""
        clip, cap = metric.clip, metric.cap
        if metric.loss == RANK:
            state = self._units.states(f"{metric.name}/loss", rows, np.ones(len(at), dtype=np.bool_))
            first = state != tables.BET_ON
            rows, at, one, zero = self._ranks[metric.name].complete(take(rows, first), at[first])
        else:
            one, zero = (
                loss_values(metric.loss, rows["score"][:, arm], rows["label"], clip=clip, cap=cap, q=metric.q)
                for arm in (1, 0)
            )
        least, most = loss_range(metric.loss, clip=clip, cap=cap)
        posting = _moments(metric.name, rows, at, one, zero, one - zero)
        increments = posting.rows
        assert increments is not None
        increments[:, HARM] = bets.mean_factors(one - zero, most - least)
        increments[:, BETTER] = bets.mean_factors(zero - one, most - least)
        if metric.provable:
            # Against "the challenger loses the margin or more": E[one - (1 + rel) zero - abs] >= 0.
            relative, absolute = metric.promote_margin_rel or 0.0, metric.promote_margin_abs or 0.0
            worse = one - (1.0 + relative) * zero - absolute
            increments[:, PROOF] = bets.mean_factors(-worse, most - (1.0 + relative) * least - absolute)
        if metric.loss != RANK:
            self._units.silence(f"{metric.name}/loss", rows, increments)
        elif self._units.sticky:
            # A pair is of two units, of which one may be known from an earlier stage.
            self._units.only_once_a_stage(increments, np.ones(len(increments), dtype=np.bool_))
        return posting

    def mean(self, metric: Metric, given: Floats, rows: Requests, at: Ints) -> tuple[Posting, Count]:
        """The KPI `given` of requests whose arm was drawn, and how many values lie outside the declared range."""
        assert metric.range is not None
        low, high = metric.range
        value = np.clip(given, low, high)
        lots = drawn(rows)
        challenger = lots & (rows["arm"] == CHALLENGER)
        centre = self._centres[metric.name].take(quantise(value), rows["arm"] != CHALLENGER)
        outside = given != value
        out_of_range = Count("kpi_out_of_range", at[outside], rows["stage"][outside])
        rows, at, value = take(rows, lots), at[lots], value[lots]
        centre, challenger, share = centre[lots], challenger[lots], rows["share"]
        ready = ~np.isnan(centre)
        middle = np.where(ready, centre, 0.5 * (low + high))
        signed = np.where(challenger, 1.0 / share, -1.0 / (1.0 - share))
        effect = signed * (value - middle)
        posting = _moments(
            metric.name, rows, at, np.where(challenger, value, 0.0), np.where(challenger, 0.0, value), effect
        )
        increments = posting.rows
        assert increments is not None
        increments[:, tables.N1] = challenger
        increments[:, tables.N0] = ~challenger
        # Gain is positive when the challenger is better, whatever the direction of the metric.
        sign = 1.0 if metric.better == "higher" else -1.0
        reach = np.maximum(high - middle, middle - low) / np.minimum(share, 1.0 - share)
        increments[:, HARM] = bets.mean_factors(-sign * effect, reach)
        increments[:, BETTER] = bets.mean_factors(sign * effect, reach)
        if metric.provable:
            relative, absolute = metric.promote_margin_rel or 0.0, metric.promote_margin_abs or 0.0
            # E[gain] = sign (mu1 - (1 - sign rel) mu0) + abs, centred on the champion's past mean.
            keep = np.where(challenger, 1.0, 1.0 - sign * relative)
            gain = sign * (keep * effect + sign * relative * middle) + absolute
            increments[:, PROOF] = bets.mean_factors(gain, reach * max(1.0, 1.0 + relative) + relative * np.abs(middle))
        increments[~ready, HARM.start :] = 0
        self._units.silence(f"{metric.name}/mean", rows, increments)
        return posting, out_of_range


def _moments(metric: str, rows: Requests, at: Ints, one: Floats, zero: Floats, effect: Floats) -> Posting:
    """A posting of n pairs: the outcomes of both arms and their effect, no bets yet."""
    increments = np.zeros((len(at), WIDTH), dtype=np.int64)
    increments[:, [tables.N, tables.N1, tables.N0]] = 1
    increments[:, tables.Y1], increments[:, tables.Y0] = quantise(one), quantise(zero)
    increments[:, tables.S], increments[:, tables.V] = quantise(effect), quantise_up(effect * effect)
    return Posting(metric, at, rows["stage"], rows["parts"], rows=increments)
