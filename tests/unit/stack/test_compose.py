"""docker-compose.yaml starts the same set as `slipway up`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import jsonschema
import pytest
import redis
import yaml
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from pipelines.settings import PROJECT, Settings
from pipelines.stack import PART_NAMES
from tests.free_ports import free_port
from tests.redis_server import require_redis

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())


def test_every_part_is_a_service_and_every_service_a_part():
    assert set(COMPOSE["services"]) == {*PART_NAMES, "localhost", "postgres", "kafka", "redis"}
    for name in PART_NAMES:
        assert COMPOSE["services"][name]["command"] == [name]


def test_the_parts_share_one_network_and_one_home():
    for name in PART_NAMES:
        service = COMPOSE["services"][name]
        assert service["network_mode"] == "service:localhost"
        assert "home:/var/slipway" in service["volumes"]
        assert service["environment"]["SLIPWAY_HOME"] == "/var/slipway"


def test_postgres_comes_when_asked_for_and_makes_the_databases_of_the_settings():
    postgres = COMPOSE["services"]["postgres"]
    assert postgres["profiles"] == ["postgres"]
    (script,) = (volume.partition(":")[0] for volume in postgres["volumes"] if "initdb" in volume)
    made = (PROJECT / script).read_text().split()
    assert {"airflow;", "mlflow;"} < set(made)
    assert postgres["environment"]["POSTGRES_DB"] == "slipway"
    for name in PART_NAMES:
        environment = COMPOSE["services"][name]["environment"]
        for setting in ("SLIPWAY_CONTROL_URL", "SLIPWAY_AIRFLOW_DB", "SLIPWAY_MLFLOW_DB"):
            assert environment[setting] == f"${{{setting}:-}}", "empty, unless somebody names one"


def test_kafka_and_the_shipper_run_only_where_they_are_asked_for():
    asked_for = {name for name, service in COMPOSE["services"].items() if service.get("profiles") == ["kafka"]}
    assert asked_for == {"kafka", "shipper"}
    assert COMPOSE["services"]["kafka"]["network_mode"] == "service:localhost", "on localhost alone"
    assert COMPOSE["services"]["gateway"]["environment"]["SLIPWAY_KAFKA"] == "${SLIPWAY_KAFKA:-}"


def test_streams_run_where_they_are_asked_for_in_an_image_with_spark():
    assert COMPOSE["services"]["stream"]["profiles"] == ["stream"]
    assert COMPOSE["services"]["localhost"]["build"]["args"] == {"WITH_SPARK": "${SLIPWAY_WITH_SPARK:-}"}
    assert "ARG WITH_SPARK=" in (PROJECT / "Dockerfile").read_text().splitlines(), "off unless somebody asks"


def test_redis_comes_when_asked_for_and_every_part_is_told_of_it():
    service = COMPOSE["services"]["redis"]
    assert service["profiles"] == ["redis"]
    assert service["network_mode"] == "service:localhost", "on localhost alone"
    for name in PART_NAMES:
        environment = COMPOSE["services"][name]["environment"]
        assert environment["SLIPWAY_ONLINE_STORE"] == "${SLIPWAY_ONLINE_STORE:-sqlite}"
        assert environment["SLIPWAY_REDIS_URL"] == "${SLIPWAY_REDIS_URL:-}"


def test_the_redis_of_compose_wants_its_password_and_starts_with_none_but_it(tmp_path, monkeypatch):
    (script,) = COMPOSE["services"]["redis"]["command"]
    port = free_port()
    local = script.replace("$$", "$").replace("dir /data", f"dir {tmp_path}\\nport {port}")
    require_redis()
    monkeypatch.setenv("SLIPWAY_REDIS_PASSWORD", "")
    assert subprocess.run(["sh", "-c", local], timeout=30, check=False).returncode == 1
    monkeypatch.setenv("SLIPWAY_REDIS_PASSWORD", "open sesame")
    server = subprocess.Popen(["sh", "-c", local], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        client = redis.Redis(port=port, password="open sesame", retry=Retry(ConstantBackoff(0.05), 200))
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_published_ports_are_the_default_ones_and_local_only(monkeypatch):
    for name in ("AIRFLOW", "MLFLOW", "GATEWAY"):
        monkeypatch.delenv(f"SLIPWAY_{name}_PORT", raising=False)
    settings = Settings()
    grpc_port = COMPOSE["services"]["gateway"]["environment"]["SLIPWAY_GATEWAY_GRPC_PORT"]
    published = (settings.airflow_port, settings.mlflow_port, settings.gateway_port, grpc_port)
    expected = {f"127.0.0.1:{port}:{port}" for port in published}
    assert set(COMPOSE["services"]["localhost"]["ports"]) == expected


def test_the_file_follows_the_compose_specification():
    schema = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)
    if shutil.which("docker") is not None and _compose("version").returncode == 0:  # Docker itself, where it is there
        done = _compose("-f", str(PROJECT / "docker-compose.yaml"), "config", "--quiet")
        assert done.returncode == 0, done.stderr


def _compose(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", "compose", *arguments], capture_output=True, text=True, check=False)


def test_the_image_installs_what_setup_would_name():
    assert "libgomp1" in (PROJECT / "packages.txt").read_text().split()
