"""The stack with Airflow, MLflow and the control database on one PostgreSQL server, and nothing on SQLite."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest

from pipelines.adapters.control_db import control_db
from pipelines.contracts.errors import TransientError
from pipelines.contracts.routes import Route
from pipelines.settings import Settings
from pipelines.stack import airflow_password, down, processes, status, up
from tests.builders import constant_release
from tests.free_ports import free_ports
from tests.postgres import PostgresServer, running_postgres
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.proof]  # `make proof` runs it: it starts a whole stack once more


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with running_postgres() as running:
        yield running


@pytest.fixture(scope="module")
def settings(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    airflow, mlflow, gateway = free_ports(3)
    made = Settings(
        home=tmp_path_factory.mktemp("stack"),
        airflow_port=airflow,
        mlflow_port=mlflow,
        gateway_port=gateway,
        control_url=server.new_database(),
        airflow_db=server.new_database(),
        mlflow_db=server.new_database(),
    )
    began = time.monotonic()
    try:
        up(made)
        print(f"the stack was up in {time.monotonic() - began:.0f} s")
        yield made
    finally:
        down(made)


def test_every_part_runs_and_keeps_its_rows_on_the_server(settings: Settings) -> None:
    assert {part.state for part in status(settings)} == {"running"}
    named = httpx.post(f"{settings.mlflow_url}/api/2.0/mlflow/experiments/create", json={"name": "kept"})
    assert named.status_code == httpx.codes.OK
    with closing(psycopg.connect(settings.mlflow_db)) as connection:
        assert connection.execute("select count(*) from experiments where name = 'kept'").fetchone() == (1,)

    sign_in = {"username": "admin", "password": airflow_password(settings, "admin")}
    token = httpx.post(f"{settings.airflow_url}/auth/token", json=sign_in).json()["access_token"]
    with httpx.Client(base_url=settings.airflow_url, headers={"authorization": f"Bearer {token}"}) as airflow:
        wait_until(
            lambda: airflow.get("/api/v2/dags/dataset.planes").status_code == httpx.codes.OK, "the DAGs are there", 90
        )
        run = airflow.post("/api/v2/dags/dataset.planes/dagRuns", json={"logical_date": None, "dag_run_id": "by-hand"})
        assert run.status_code == httpx.codes.OK, run.text
        where = "/api/v2/dags/dataset.planes/dagRuns/by-hand"
        wait_until(lambda: airflow.get(where).json()["state"] in ("success", "failed"), "the run has ended", 240)
        assert airflow.get(where).json()["state"] == "success"

    release = constant_release(settings.releases, "m", 0.3)
    control_db(settings).set_route(Route(model="m", version=0, mode="single", champion=release))
    wait_until(lambda: bool(httpx.get(f"{settings.gateway_url}/v1/routes").json()["routes"]), "the gateway follows", 90)
    assert not list(settings.root.rglob("airflow.db")) + list(settings.root.rglob("mlflow.db"))
    assert not (settings.root / "control.db").exists()


def test_no_password_is_on_a_command_line_or_in_a_log(settings: Settings) -> None:
    password = settings.control_url.partition("slipway:")[2].partition("@")[0]
    for part in status(settings):
        for process in processes.members(processes.read_record(part.part, settings.run_dir)):
            try:
                assert password not in " ".join(process.cmdline())
            except psutil.NoSuchProcess:
                continue
    logs = [path for path in settings.root.rglob("*.log") if password in path.read_text(errors="replace")]
    assert logs == []


def test_a_second_start_finds_nothing_to_migrate_and_a_server_that_is_away_is_named(
    settings: Settings, tmp_path: Path
) -> None:
    began = time.monotonic()
    up(settings)
    assert time.monotonic() - began < 20
    port, nobody = free_ports(2)
    away = Settings(home=tmp_path, mlflow_port=port, mlflow_db=f"postgresql://slipway@127.0.0.1:{nobody}/mlflow")
    with pytest.raises(TransientError, match=r"(?s)mlflow database.*SLIPWAY_MLFLOW_DB"):
        up(away, ["mlflow"])
