"""The collector's own tables: one plan a batch, whoever makes it."""

from __future__ import annotations

import pytest

from pipelines.adapters.collector_store import BatchPlan, CollectorStore
from pipelines.adapters.control_db import control_db
from pipelines.contracts.errors import TerminalError
from pipelines.settings import Settings


def test_a_second_collector_is_refused_with_a_hint(settings: Settings) -> None:
    database = control_db(settings)
    plan = BatchPlan(n=1, ranges=[], after=[], gaps=[])
    CollectorStore(database).plan(plan)

    with pytest.raises(TerminalError, match="one collector an installation"):
        CollectorStore(database).plan(plan)
