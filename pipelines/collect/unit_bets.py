"""Bets a unit: requests of one unit are not drawn independently of each other.

Half of the bets are on a unit once in the rollout, the other half once in each stage (see `mixture.over_time`).
"""

from __future__ import annotations

import numpy as np

from pipelines.collect.request_columns import Bools, Requests
from pipelines.rollout.policy import Policy
from pipelines.stats.evidence import HARM
from pipelines.stats.mixture import ONCE
from pipelines.stats.nats import Ints
from pipelines.stats.tables import BET_ON, FRESH, MET_BEFORE


class UnitBets:
    """Which observations may be bet on. `sticky`: the policy draws units; else every request is drawn for itself."""

    def __init__(self, policy: Policy) -> None:
        self.sticky = policy.unit == "unit"
        self._stages = policy.stages
        self._met: dict[str, Ints] = {}

    def states(self, family: str, rows: Requests, wanted: Bools) -> Ints:
        """(n,) what the units of the `wanted` rows (in order of position) are to this family: FRESH the first time in
        the rollout, MET_BEFORE the first time in a later stage, else BET_ON. Rows not wanted are FRESH.
        """
        found = np.full(len(wanted), FRESH, dtype=np.int64)
        if not self.sticky:
            return found
        place, unit = np.flatnonzero(wanted), rows["unit"][wanted]
        found[place] = BET_ON
        in_stage = unit * np.int64(len(self._stages)) + rows["stage"][wanted]
        for name, key, state in ((f"{family}/stage", in_stage, MET_BEFORE), (f"{family}/rollout", unit, FRESH)):
            unique, first = np.unique(key, return_index=True)
            met = self._met.get(name, np.zeros(0, dtype=np.int64))
            new = ~np.isin(unique, met)
            self._met[name] = np.concatenate([met, unique[new]])
            found[place[first[new]]] = state
        return found

    def silence(self, family: str, rows: Requests, increments: Ints) -> None:
        """Takes back the bets of (n, WIDTH) increments that their units do not allow."""
        if self.sticky:
            state = self.states(family, rows, np.ones(len(increments), dtype=np.bool_))
            self.only_once_a_stage(increments, state != FRESH)
            increments[state == BET_ON, HARM.start :] = 0

    @staticmethod
    def only_once_a_stage(increments: Ints, rows: Bools) -> None:
        """Takes back the bets that are on a unit once in the rollout."""
        bets = increments[:, HARM.start :]
        bets[np.ix_(rows, np.arange(bets.shape[1])[ONCE])] = 0
