"""Rollouts whose processes die at any moment (`tests/unit/rollout/test_executor.py`), with their record on Postgres."""

from __future__ import annotations

from hypothesis.stateful import run_state_machine_as_test

from tests.postgres import PostgresServer
from tests.unit.rollout.test_executor import Rollouts, deaths


def test_no_interleaving_of_deaths_breaks_the_record_on_postgres_either(postgres: PostgresServer) -> None:
    run_state_machine_as_test(lambda: Rollouts(postgres.new_database()), settings=deaths(8))
