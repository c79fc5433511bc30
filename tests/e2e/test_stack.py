"""The whole local stack: up, asked, a part lost and brought back, another installation beside it, down."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx
import psutil
import pytest

from pipelines.settings import Settings
from pipelines.stack import PART_NAMES, airflow_password, down, processes, status, up
from tests.free_ports import free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_every_part_runs_and_says_what_it_is(stack):
    assert [part.part for part in stack] == [name for name in PART_NAMES if name not in ("shipper", "stream")]
    assert {part.state for part in stack} == {"running"}
    assert all(part.version for part in stack)


def test_each_user_can_sign_in_and_a_wrong_password_cannot(settings, stack):
    for user in ("admin", "approver", "viewer"):
        answer = sign_in(settings, user, airflow_password(settings, user))
        assert answer.status_code == httpx.codes.CREATED
    assert sign_in(settings, "admin", "admin").status_code == httpx.codes.UNAUTHORIZED


def test_airflow_imports_the_plugins_and_has_no_example_dags(settings, stack):
    token = sign_in(settings, "admin", airflow_password(settings)).json()["access_token"]
    asked = httpx.get(
        f"{settings.airflow_url}/api/v2/plugins/importErrors", headers={"Authorization": f"Bearer {token}"}
    )
    assert asked.headers["content-type"] == "application/json"
    assert asked.json()["import_errors"] == []
    dags = httpx.get(f"{settings.airflow_url}/api/v2/dags", headers={"Authorization": f"Bearer {token}"}).json()
    assert not [dag["dag_id"] for dag in dags["dags"] if "example" in dag["dag_id"]]


def test_mlflow_keeps_what_it_is_given(settings, stack):
    made = httpx.post(f"{settings.mlflow_url}/api/2.0/mlflow/experiments/create", json={"name": "kept"})
    assert made.status_code == httpx.codes.OK
    assert settings.mlflow_store.removeprefix("sqlite:///").startswith(str(settings.root))


def test_a_killed_part_comes_back_alone(settings, stack):
    before = {part.part: part.pid for part in status(settings)}
    os.kill(before["collector"], signal.SIGKILL)
    wait_until(lambda: any(part.state == "crashed" for part in status(settings)), "a part has crashed", 30)
    assert {part.part for part in status(settings) if part.state == "crashed"} == {"collector"}
    up(settings)
    after = {part.part: part.pid for part in status(settings)}
    assert after.pop("collector") != before.pop("collector")
    assert after == before


def test_another_installation_runs_beside_it(settings, stack, tmp_path):
    (port,) = free_ports(1)
    other = Settings(home=tmp_path, gateway_port=port)
    try:
        (gateway,) = up(other, ["gateway"])
        assert gateway.state == "running"
    finally:
        down(other)
    assert {part.state for part in status(settings)} == {"running"}


def test_down_leaves_no_process_and_no_taken_port(settings, tmp_path):
    """Its own small stack, so that it may come in any order."""
    (port,) = free_ports(1)
    small = Settings(home=tmp_path, gateway_port=port)
    up(small, ["gateway"])
    family = processes.members(processes.read_record("gateway", small.run_dir))
    assert len(family) > 1, "BentoML starts workers"
    assert {part.state for part in down(small)} == {"stopped"}
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    socket.create_server(("127.0.0.1", port)).close()


def sign_in(settings: Settings, user: str, password: str) -> httpx.Response:
    return httpx.post(f"{settings.airflow_url}/auth/token", json={"username": user, "password": password})


def test_secrets_lie_in_the_home_alone(settings, stack):
    token = (settings.secrets_dir / "token").read_text()
    logs = [Path(part.log).read_text(errors="replace") for part in stack if part.log]
    assert not [log for log in logs if token in log]
