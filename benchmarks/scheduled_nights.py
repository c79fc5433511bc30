"""Scheduled nights under the wall clock: nobody touches the stack, and both models end at `registered`, twice.

    .venv/bin/python benchmarks/scheduled_nights.py [--home DIR] [--every MINUTES]

A new home is brought up and only watched. Every schedule begins at once (the latest moment of a cron schedule that has
not been run is run): the year is taken up, views are built, models wait for them and are trained. The specs' nightly
crons are replaced by one of a few minutes, so that the next night comes soon; it has to find new rows and register
releases of its own. The sample is laid so that it is a weekday afternoon there: a few minutes have new flights.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.adapters.control_db import control_db
from pipelines.contracts.clocks import to_us
from pipelines.datasets.sample_shift import shift_for
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import names
from pipelines.stack import airflow_password, down, up

HOUR_US = 3_600_000_000
BUSY_HOUR = 21  # UTC; late afternoon in New York
NIGHTS = 2
TIMEOUT_S = 900.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("var/scheduled_nights"))
    parser.add_argument("--every", type=int, default=3, help="minutes between two nights")
    chosen = parser.parse_args()
    result = watch(chosen.home, chosen.every)
    print(json.dumps(result, indent=1))
    return 0 if result["ok"] else 1


def watch(home: Path, minutes: int = 3) -> dict[str, Any]:
    """Bring a new home up and look on until each model has two releases; what was found."""
    shutil.rmtree(home, ignore_errors=True)
    settings = new_home(home, minutes)
    parts = ["airflow", "mlflow"]
    try:
        begun = time.monotonic()
        up(settings, parts)
        ready = time.monotonic()
        with AirflowRest(settings.airflow_url, "admin", airflow_password(settings, "admin")) as admin:
            models = sorted(names(settings.include_dir, "models"))
            at: dict[str, list[float]] = {model: [] for model in models}
            while min(len(seen) for seen in at.values()) < NIGHTS and time.monotonic() - ready < TIMEOUT_S:
                for model in models:
                    releases = control_db(settings).releases(model)
                    at[model] += [round(time.monotonic() - ready, 1)] * (len(releases) - len(at[model]))
                time.sleep(0.5)  # between two looks
            runs = admin.runs("~")
            rows = [new_rows(admin, run.dag_id, run.dag_run_id) for run in runs if run.dag_id.startswith("dataset.")]
    finally:
        down(settings, parts)
    later = sum(found["rows"] for found in rows if not found["first"])
    status = {model: [row.status for row in control_db(settings).releases(model)] for model in models}
    kinds = sorted({run.run_type for run in runs})
    failed = [f"{run.dag_id} {run.dag_run_id}" for run in runs if run.state == "failed"]
    enough = all(found[:NIGHTS] == ["registered"] * NIGHTS for found in status.values())
    return {
        "ok": enough and later > 0 and not failed and "manual" not in kinds,
        "seconds_to_start": round(ready - begun, 1),
        "seconds_after_start_to_release": at,
        "status": status,
        "rows_of_first_night": sum(found["rows"] for found in rows if found["first"]),
        "rows_of_later_nights": later,
        "runs": len(runs),
        "run_types": kinds,
        "failed": failed,
    }


def new_home(home: Path, minutes: int) -> Settings:
    """Settings of a home with a copy of the specs, nightly ones every few minutes, and a busy hour."""
    include = home / "include"
    shutil.copytree(PROJECT / "include", include)
    for path in [*(include / "datasets").glob("*.yaml"), *(include / "models").glob("*.yaml")]:
        text = path.read_text()
        path.write_text(re.sub(r'^schedule: ".*"', f'schedule: "*/{minutes} * * * *"', text, flags=re.MULTILINE))
    now_us = to_us(datetime.now(UTC))
    hour_us = now_us % (24 * HOUR_US)
    plain = shift_for(now_us)
    moved = plain.first_us + hour_us - BUSY_HOUR * HOUR_US
    weekday = datetime.fromtimestamp((now_us - moved) / 1e6, UTC).weekday()
    moved += max(0, weekday - 4) * 24 * HOUR_US
    root = home / "home"
    root.mkdir()
    (root / "sample_shift.json").write_text(json.dumps({"first_us": moved, "repeats": True}))
    ports = {f"{name}_port": free_port() for name in ("airflow", "mlflow", "gateway")}
    return Settings(home=root, include_dir=include, **ports)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def new_rows(admin: AirflowRest, dag: str, run: str) -> dict[str, Any]:
    """What a run of a dataset has published; nothing when it has not ended."""
    from pipelines.contracts.errors import NotFoundError

    try:
        published = admin.xcom(dag, run, "publish")
        first = admin.xcom(dag, run, "stage")["after_us"] is None
    except NotFoundError:
        return {"rows": 0, "first": False}
    return {"rows": int(published["rows"]), "first": first}


if __name__ == "__main__":
    sys.exit(main())
