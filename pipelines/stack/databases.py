"""The databases of Airflow, MLflow and Slipway itself: made and migrated before the parts that use them start.

On Postgres a database has to be there; its tables are made here. Migrating an empty SQLite database takes seconds of
two libraries' imports, and gives the same file every time. So the first one made by an environment is kept in it as a
blank, and further homes begin with a copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from pipelines.contracts.errors import TerminalError, TransientError
from pipelines.settings import PROJECT, Settings
from pipelines.stack.environment import orchestration_bin
from pipelines.stack.parts import Database

_UPGRADE_MLFLOW = "import os, mlflow.db; mlflow.db.upgrade.callback(os.environ['MLFLOW_BACKEND_STORE_URI'])"
_DISTRIBUTION: dict[str, str] = {"airflow": "apache-airflow", "mlflow": "mlflow"}


def prepare(settings: Settings, which: set[Database], environment: Mapping[str, str]) -> None:
    """Bring the named databases to the installed versions, side by side. Does nothing where that is already so."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        running = [pool.submit(_prepare, settings, database, environment) for database in sorted(which)]
        for migration in running:
            migration.result()


def path_of(settings: Settings, database: Database) -> Path:
    """The SQLite file of Airflow or MLflow."""
    return settings.root / database / f"{database}.db"


def _prepare(settings: Settings, database: Database, environment: Mapping[str, str]) -> None:
    if database == "control":
        from pipelines.adapters.control_db import control_db  # SQLAlchemy: `status` does without

        control_db(settings)
        return
    path = path_of(settings, database)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # parts that start in their own containers come here at once
        _prepare_alone(settings, database, environment)


def _prepare_alone(settings: Settings, database: Database, environment: Mapping[str, str]) -> None:
    path = path_of(settings, database)
    migrated_by = path.with_suffix(".version")
    installed = version(_DISTRIBUTION[database])
    if url := {"airflow": settings.airflow_db, "mlflow": settings.mlflow_db}[database]:
        installed = f"{installed} {hashlib.sha256(url.encode()).hexdigest()}"
        has_tables = _has_tables(url, database)
        if not (has_tables and migrated_by.exists() and migrated_by.read_text() == installed):
            _migrate(database, environment)
            migrated_by.write_text(installed)
        return
    if path.exists() and migrated_by.exists() and migrated_by.read_text() == installed:
        return
    blank = Path(sys.prefix) / "share" / "slipway" / f"{database}-{installed}.db"
    if not path.exists() and blank.exists():
        draft = path.with_suffix(".draft")
        shutil.copyfile(blank, draft)
        draft.replace(path)
    else:
        new = not path.exists()
        _migrate(database, environment)
        if new:
            _keep_blank(path, blank)
    migrated_by.write_text(installed)


def _has_tables(url: str, database: Database) -> bool:
    """Whether a migration has been there: the database may have been made anew. Raises TransientError."""
    import psycopg

    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.execute("select to_regclass('alembic_version')").fetchone() != (None,)
    except psycopg.Error as error:
        hint = f"SLIPWAY_{database.upper()}_DB says where it is."
        got = str(error).strip()
        raise TransientError(f"{database} database", got=got, expected="a server that answers", hint=hint) from error


def _migrate(database: Database, environment: Mapping[str, str]) -> None:
    command = {
        "airflow": [str(orchestration_bin() / "airflow"), "db", "migrate"],
        # `mlflow db upgrade` takes the URL, with its password, on the command line alone.
        "mlflow": [sys.executable, "-c", _UPGRADE_MLFLOW],
    }[database]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise TerminalError(
            f"migration of the {database} database", got=f"exit {done.returncode}", expected="exit 0", hint=f"\n{tail}"
        )


def _keep_blank(path: Path, blank: Path) -> None:
    blank.parent.mkdir(parents=True, exist_ok=True)
    draft = blank.with_suffix(f".{os.getpid()}")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(draft)) as target:
        source.backup(target)
    draft.replace(blank)
