"""The environment variables every part of an installation gets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pydantic import SecretStr

from pipelines.settings import PROJECT, Settings
from pipelines.stack.credentials import AIRFLOW_USERS, airflow_password, airflow_passwords_file, keep, read_or_make

__all__ = ["airflow_password", "part_environment"]


def part_environment(settings: Settings) -> dict[str, str]:
    """What is added to a process's environment so that it belongs to this installation; makes missing secrets.

    Holds every setting as `SLIPWAY_...` (so that values given by keyword reach other processes too), Airflow's and
    MLflow's configuration, and switches that keep libraries from reporting usage.
    """
    return {
        **_slipway(settings),
        **_airflow(settings),
        **_mlflow(settings),
        **_quiet_libraries(settings),
        "PYTHONPATH": _python_path(),
        "PYTHONUNBUFFERED": "1",
    }


def _slipway(settings: Settings) -> dict[str, str]:
    variables = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        variables[f"SLIPWAY_{name.upper()}"] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    variables["SLIPWAY_HOME"] = str(settings.root)
    variables["SLIPWAY_INCLUDE_DIR"] = str(settings.include_dir.resolve())
    for name in ("token", "pii_key"):
        file = settings.secrets_dir / name
        if given := variables[f"SLIPWAY_{name.upper()}"]:
            keep(file, given)  # whoever opens this home later finds the one its parts were started with
        else:
            variables[f"SLIPWAY_{name.upper()}"] = read_or_make(file)
    return variables


def _airflow(settings: Settings) -> dict[str, str]:
    home = settings.airflow_home
    jwt_secret = read_or_make(settings.secrets_dir / "airflow_jwt", bits=512)
    options = {
        "core": {
            "dags_folder": str(PROJECT / "dags"),
            "plugins_folder": str(PROJECT / "plugins"),
            "load_examples": "False",
            "executor": "LocalExecutor",
            "parallelism": "4",
            "default_timezone": "utc",
            "fernet_key": _fernet_key(settings),
            "execution_api_server_url": f"{settings.airflow_url}/execution/",
            "simple_auth_manager_users": ",".join(f"{user}:{role}" for user, role in AIRFLOW_USERS.items()),
            "simple_auth_manager_passwords_file": str(airflow_passwords_file(settings)),
            "dags_are_paused_at_creation": "False",
        },
        "database": {
            "sql_alchemy_conn": settings.airflow_store,
            "load_default_connections": "False",
        },
        "api": {
            "host": settings.listen,
            "port": str(settings.airflow_port),
            "base_url": settings.airflow_url,
            "workers": "1",
            "secret_key": jwt_secret[:64],
        },
        "api_auth": {"jwt_secret": jwt_secret},
        # A gate or task that ends is seen at once; the defaults are made for large shared installations.
        "scheduler": {
            "scheduler_idle_sleep_time": "0.1",
            "trigger_timeout_check_interval": "1",
            "enable_health_check": "False",
        },
        # Below the default, deferred tasks are taken for failed: the worker's last state arrives after its end.
        "workers": {"min_heartbeat_interval": "1"},
        "dag_processor": {"min_file_process_interval": "60", "refresh_interval": "30"},
        "logging": {"base_log_folder": str(home / "logs")},
        "usage_data_collection": {"enabled": "False"},
        "openlineage": _openlineage(settings),
    }
    variables = {
        f"AIRFLOW__{section.upper()}__{key.upper()}": value
        for section, keys in options.items()
        for key, value in keys.items()
    }
    return {**variables, "AIRFLOW_HOME": str(home)}


def _openlineage(settings: Settings) -> dict[str, str]:
    """Events of the tasks into a file of the home; a transport that the environment names is left alone."""
    if not settings.openlineage:
        return {"disabled": "True"}
    # A fork of a task that has computed may hang, and shares its connection to the supervisor.
    options = {"namespace": "slipway", "execute_in_thread": "True"}
    if "AIRFLOW__OPENLINEAGE__TRANSPORT" in os.environ:
        return options
    file = {
        "type": "pipelines.adapters.openlineage_file.LineageFile",
        "path": str(settings.logs_dir / "openlineage.jsonl"),
    }
    return options | {"transport": json.dumps(file)}


def _fernet_key(settings: Settings) -> str:
    import base64

    return base64.urlsafe_b64encode(bytes.fromhex(read_or_make(settings.secrets_dir / "airflow_fernet"))).decode()


def _mlflow(settings: Settings) -> dict[str, str]:
    return {
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        # The server's own; on a command line everybody could read a password in it.
        "MLFLOW_BACKEND_STORE_URI": settings.mlflow_store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Jobs of its evaluation features: five more processes that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _quiet_libraries(settings: Settings) -> dict[str, str]:
    return {
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(settings.root / "bentoml"),
        "FEAST_USAGE": "False",
        "GX_ANALYTICS_ENABLED": "False",
        "GIT_PYTHON_REFRESH": "quiet",
        # Threads of a training that wait by spinning take the cores from everything else on the machine.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _python_path() -> str:
    ours = [str(PROJECT), str(PROJECT / "config")]
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry not in ours]
    return os.pathsep.join([*ours, *inherited])


def orchestration_bin() -> Path:
    """The folder of the orchestration environment's commands: that of the running interpreter."""
    return Path(sys.executable).parent


def serving_python() -> Path:
    """The interpreter of the serving environment."""
    return PROJECT / "serving" / ".venv" / "bin" / "python"
