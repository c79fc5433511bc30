"""Servers that several contract tests talk to, and the control database on both of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.settings import Settings
from tests.kafka_broker import Broker, broker
from tests.postgres import PostgresServer, running_postgres

if TYPE_CHECKING:
    from tests.s3_server import S3Server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An installation with an empty control database of its own."""
    if request.param == "sqlite":
        return Settings(home=tmp_path)
    return Settings(home=tmp_path, control_url=request.getfixturevalue("postgres").new_database())


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server; whoever uses it leaves its bucket empty."""
    from tests.s3_server import running_s3  # needs Arrow, which the gateway's environment has not

    with running_s3() as server:
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One real Kafka broker."""
    with broker(tmp_path_factory.mktemp("kafka")) as made:
        yield made
