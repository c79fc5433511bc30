"""docker-compose.yaml starts the same set as `slipway up`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import yaml

from pipelines.settings import PROJECT, Settings
from pipelines.stack import PART_NAMES

COMPOSE = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())


def test_every_part_is_a_service_and_every_service_a_part():
    assert set(COMPOSE["services"]) == {*PART_NAMES, "localhost", "postgres", "kafka"}
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


def test_the_published_ports_are_the_default_ones_and_local_only(monkeypatch):
    for name in ("AIRFLOW", "MLFLOW", "GATEWAY"):
        monkeypatch.delenv(f"SLIPWAY_{name}_PORT", raising=False)
    settings = Settings()
    expected = {f"127.0.0.1:{p}:{p}" for p in (settings.airflow_port, settings.mlflow_port, settings.gateway_port)}
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
