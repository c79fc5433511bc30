"""One bet a unit and stage: requests of one unit are not drawn independently of each other."""

from __future__ import annotations

import numpy as np

from pipelines.collect.request_columns import Bools, Requests
from pipelines.rollout.policy import Policy
from pipelines.stats.evidence import HARM
from pipelines.stats.nats import Ints


class UnitBets:
    """Which observations may be bet on. `sticky`: the policy draws units; else every request is drawn for itself."""

    def __init__(self, policy: Policy) -> None:
        self.sticky = policy.unit == "unit"
        self._stages = policy.stages
        self._bet_units: dict[str, Ints] = {}

    def fresh(self, family: str, rows: Requests, wanted: Bools) -> Bools:
        """Of the `wanted` rows (in order of position), the first of each unit and stage in this family."""
        if not self.sticky:
            return wanted
        key = rows["unit"] * np.int64(len(self._stages)) + rows["stage"]
        place = np.flatnonzero(wanted)
        unique, index = np.unique(key[place], return_index=True)
        held = self._bet_units.get(family, np.zeros(0, dtype=np.int64))
        new = ~np.isin(unique, held)
        self._bet_units[family] = np.concatenate([held, unique[new]])
        result = np.zeros(len(wanted), dtype=np.bool_)
        result[place[index[new]]] = True
        return result

    def silence(self, family: str, rows: Requests, increments: Ints) -> None:
        """With sticky units, only the first observation of a unit in a stage is bet on."""
        if self.sticky:
            first = self.fresh(family, rows, np.ones(len(increments), dtype=np.bool_))
            increments[~first, HARM.start :] = 0
