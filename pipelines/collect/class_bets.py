"""Bets on what happened: errors, invalid scores, slow answers, lost and doubled ones, and the draw itself.

Every observation falls into one of a few classes (which arm, which outcome), and a table of `pipelines.stats.tables`
holds what each class adds to the evidence at a declared share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from pipelines.collect.request_columns import CHALLENGER, CHAMPION, ERROR, INVALID, OK, Bools, Requests, drawn, take
from pipelines.collect.unit_bets import UnitBets
from pipelines.rollout.policy import Metric, Policy
from pipelines.stats import tables
from pipelines.stats.centre import RunningRate
from pipelines.stats.cuts import RunningCuts
from pipelines.stats.latency_blocks import MARGIN, LatencyBlocks
from pipelines.stats.nats import Ints
from pipelines.stats.postings import Posting

_RUNS = 32
"""Runs of one share up to which rows are cut by run, which copies nothing, and not gathered by share."""
TableOf = Callable[[float | None], Ints | None]
"""The increments of each class at a share; None as the share: both arms answered. None as the table: no bet."""


def pair_class(rows: Requests, outcome: Bools) -> Ints:
    """Class of (n, 2) outcomes by arm: `2 * challenger + event` for a drawn arm, `2 * e1 + e0` for pairs."""
    lots = drawn(rows)
    arm = np.where(lots, rows["arm"], 0)
    mine = outcome[np.arange(len(arm)), arm]
    return np.where(lots, 2 * arm + mine, 2 * outcome[:, 1] + outcome[:, 0]).astype(np.int64, copy=False)


def telling(rows: Requests, kind: Ints) -> Bools:
    """Whether a class says anything of the arms: an event where the arm was drawn, a discordant pair elsewhere."""
    return cast("Bools", np.where(drawn(rows), kind % 2 == 1, (kind == 1) | (kind == 2)))


class ClassBets:
    """What these bets need from the past, frozen per block: champion's error rates, latency cuts, 60-second blocks."""

    def __init__(self, policy: Policy, units: UnitBets) -> None:
        self._units = units
        self._integrity = policy.integrity
        self._quantiles = [metric for metric in policy.metrics if metric.kind == "quantile"]
        self._cuts = RunningCuts([cast("float", metric.q) for metric in self._quantiles])
        self._beside_cuts = RunningCuts([cast("float", metric.q) for metric in self._quantiles])
        self.blocks = LatencyBlocks(
            [(metric.name, cast("float", metric.q)) for metric in self._quantiles], policy.response_deadline_s
        )
        self._rates = {metric.name: RunningRate() for metric in policy.metrics if metric.kind == "event"}

    def sample_ratio(self, fresh: Requests) -> list[Posting]:
        """Bets that the arms of just opened requests were drawn with the declared share."""
        if "sample_ratio" not in self._integrity:
            return []
        rows = take(fresh, drawn(fresh))
        kind = 3 * (rows["arm"] == CHALLENGER)
        return self._post("sample_ratio", rows, rows["pos"], kind, tables.assignments, bet_on=None)

    def integrity(self, name: str, rows: Requests, at: Ints, outcome: Bools) -> list[Posting]:
        """Bets on lost or doubled responses: `outcome` (n, 2) by arm."""
        if name not in self._integrity:
            return []
        kind = pair_class(rows, outcome)
        return self._post(name, rows, at, kind, _integrity_table, bet_on=telling(rows, kind))

    def events(self, metric: Metric, rows: Requests, at: Ints) -> list[Posting]:
        """Bets on errors or invalid scores."""
        outcome = rows["status"] == (ERROR if metric.event == "error" else INVALID)
        kind = pair_class(rows, outcome)
        margin = metric.promote_margin_abs
        champion = ~drawn(rows) | (rows["arm"] == CHAMPION)
        rate = self._rates[metric.name].take(outcome[:, 0], champion)
        levels = tables.CLASSES * tables.caution(rate, margin)

        def table_of(share: float | None) -> Ints:
            return tables.paired_events(margin) if share is None else tables.assigned_events(share, margin)

        return self._post(metric.name, rows, at, kind + levels, table_of, bet_on=telling(rows, kind))

    def latencies(self, rows: Requests, at: Ints) -> list[Posting]:
        """Bets on answers above the champion's running quantiles, request by request; fills `blocks`.

        A pair is compared by what its arms took beside each other, where that was measured, and with quantiles of such
        times; a drawn arm by what its client waited for.
        """
        if not self._quantiles:
            return []
        lots = drawn(rows)
        measured = np.isfinite(rows["beside"]) & ~lots[:, None]
        latency = np.where(measured, rows["beside"], rows["latency"])
        fine = (rows["status"] == OK) & np.isfinite(latency)
        index = np.arange(len(at))
        usable = np.where(lots, fine[index, np.where(lots, rows["arm"], 0)], fine.all(axis=1))
        rows, at, lots, latency = take(rows, usable), at[usable], lots[usable], latency[usable]
        # What clients waited for is taken of pairs too: a canary after a shadow finds its quantiles known.
        cuts = self._cuts.take(np.where(lots & (rows["arm"] == CHALLENGER), np.nan, rows["latency"][:, 0]))
        beside = measured[usable].any(axis=1)
        cuts[beside] = self._beside_cuts.take(latency[beside, 0])
        postings: list[Posting] = []
        for column, metric in enumerate(self._quantiles):
            cut = cuts[:, column]
            ready = ~np.isnan(cut)
            part, when, took = take(rows, ready), at[ready], latency[ready]
            above = took > cut[ready][:, None]
            assert metric.q is not None
            q = metric.q
            harm = pair_class(part, above)

            def harm_table(share: float | None, q: float = q) -> Ints:
                return tables.paired_exceedances(q) if share is None else tables.assigned_exceedances(q, share)

            postings.extend(self._post(metric.name, part, when, harm, harm_table, bet_on=None))
            if metric.harm_ratio is not None:
                # The second key: is the challenger still slower once the practical margin is taken off its latency?
                beyond = pair_class(part, took / np.array([1.0, metric.harm_ratio]) > cut[ready][:, None])
                postings.extend(
                    self._post(metric.name + MARGIN, part, when, beyond, tables.exceedance_counts, bet_on=None)
                )
            margin = metric.promote_margin_rel
            if margin is not None:
                scaled = took / np.array([1.0, 1.0 + margin]) > cut[ready][:, None]
                proof = pair_class(part, scaled)

                def proof_table(share: float | None, q: float = q) -> Ints | None:
                    return None if share is None else tables.scaled_exceedances(q, share)

                scaled_bets = f"{metric.name}/scaled"
                postings.extend(
                    self._post(metric.name, part, when, proof, proof_table, bet_on=None, family=scaled_bets)
                )
            mine = drawn(part)
            arm = part["arm"][mine]
            seen = above[mine][np.arange(len(arm)), arm].astype(np.int64)
            self.blocks.take(column, part["wall"][mine], part["stage"][mine], arm, seen)
        return postings

    def _post(
        self,
        metric: str,
        rows: Requests,
        at: Ints,
        kind: Ints,
        table_of: TableOf,
        *,
        bet_on: Bools | None,
        family: str = "",
    ) -> list[Posting]:
        """Postings of rows (in order of position `at`) by share; `bet_on` marks the rows that carry a harm bet. Sticky
        units are bet on once a `family` (the metric's name by default).
        """
        family = family or metric
        if not len(at):
            return []
        everything = np.ones(len(at), dtype=np.bool_)
        if self._units.sticky:
            harm = self._units.states(f"{family}/harm", rows, everything if bet_on is None else bet_on)
            proof = self._units.states(f"{family}/proof", rows, everything)
            kind = kind + tables.HARM_STATE * harm + tables.PROOF_STATE * proof
        postings = []
        shares = np.where(drawn(rows), rows["share"], -1.0)
        edges = np.flatnonzero(np.r_[True, shares[1:] != shares[:-1]])
        chosen: list[tuple[float, slice | Bools]]
        if len(edges) <= _RUNS:
            ends = np.r_[edges[1:], len(shares)]
            chosen = [(shares[k], slice(k, end)) for k, end in zip(edges.tolist(), ends.tolist(), strict=True)]
        else:
            chosen = [(share, shares == share) for share in np.unique(shares)]
        for share, of_share in chosen:
            table = table_of(None if share < 0.0 else float(share))
            if table is not None:
                parts, classes = rows["parts"][of_share], kind[of_share]
                postings.append(Posting(metric, at[of_share], rows["stage"][of_share], parts, classes, table))
        return postings


def _integrity_table(share: float | None) -> Ints:
    return tables.paired_events(None) if share is None else tables.assigned_events(share, None)
