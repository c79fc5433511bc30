"""The nightly path as DAG runs, beside the same jobs called one after the other in one warm process.

    .venv/bin/python benchmarks/nightly.py [--home DIR] [--keep] [--out FILE] [--scheduled]

A home gets the whole sample up to the last day but one. Two copies of it then live through the last night: new rows are
taken, checked and published, feature views built and made readable, both models trained on all flights, registered.
In one copy by Airflow (`dataset.*` started by REST, `features.*` by their assets, then `model.*.train`), in the other
by plain calls in a process that has imported everything before the clock starts. Both log to an MLflow server.

Wall time suffers from whoever else uses the machine; processor time does not, so both are told.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance
from pipelines.adapters.airflow_rest import AirflowRest
from pipelines.contracts.clocks import to_us
from pipelines.demo.dag_runs import as_of_text
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_model, names
from pipelines.stack import airflow_password, down, processes, up

EVE_US = to_us(datetime(2013, 12, 31, 8, tzinfo=UTC))
NIGHT_US = to_us(datetime(2014, 1, 1, 8, tzinfo=UTC))
GOAL_RATIO, AIM_S, LIMIT_S = 1.3, 45.0, 90.0
RUN = "night"
AIRFLOW = ["airflow", "mlflow"]
DATASET = ("stage", "check", "quarantine", "publish")
VIEW = ("build", "check", "publish", "materialise")
TRAINING = ("training_set", "fit", "evaluate", "export", "offline_gates", "registered")
_WORK = re.compile(
    r"([\w.]+:\w+): ([\d.]+) s to import it, ([\d.]+) s of work, ([\d.]+) s of processor; .*?: ([^\"\n]+)"
)
_UNIT = re.compile(r"(?:, )?slipway_\w+ \(1\)")  # sources of releases and transforms: no library


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path("var/nightly"))
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks" / "results" / "nightly.json")
    parser.add_argument("--keep", action="store_true", help="keep the prepared home for the next time")
    parser.add_argument("--scheduled", action="store_true", help="also the watched nights of scheduled_nights.py")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.prepare is not None:
        bare(Settings(), EVE_US, [], chosen.prepare)
        return 0
    if chosen.bare is not None:
        bare(Settings(), NIGHT_US, sorted(names(Settings().include_dir, "models")), chosen.bare)
        return 0
    result = measure(chosen.home, keep=chosen.keep)
    if chosen.scheduled:
        from scheduled_nights import watch

        result["scheduled_nights"] = watch(chosen.home.with_name(f"{chosen.home.name}-scheduled"))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    tell(result)
    nights = result.get("scheduled_nights", {"ok": True})
    print(f"scheduled nights: {nights}")
    return 0 if result["seconds"]["dag_runs"] <= LIMIT_S and nights["ok"] else 1


def measure(home: Path, *, keep: bool) -> dict[str, Any]:
    """Prepare, then both nights. Raises TerminalError with a task's log when a run fails."""
    base = home / "eve"
    if not (keep and (base / "done").exists()):
        shutil.rmtree(home, ignore_errors=True)
        child(_settings(base, home / "ports"), "--prepare", base / "done")
    found = {}
    for way, parts, night in (("bare", ["mlflow"], bare_night), ("dags", AIRFLOW, dag_night)):
        copy = home / way
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(base, copy)
        with running(_settings(copy, home / "ports"), parts) as settings:
            found[way] = night(settings)
    plain, dags = found["bare"], found["dags"]
    if not keep:
        shutil.rmtree(home, ignore_errors=True)
    ratio = dags["wall"] / plain["wall"]
    return {
        **provenance(),
        "load": round(os.getloadavg()[0], 1),
        "seed": {name: load_model(PROJECT / "include", name).training.seed for name in plain["models"]},
        "rows": plain["rows"],
        "seconds": {
            "dag_runs": dags["wall"],
            "bare": plain["wall"],
            "ratio": round(ratio, 2),
            "goal_ratio": GOAL_RATIO,
        },
        "processor_seconds": {
            "dag_runs": round(sum(dags["processor"].values()), 1),
            "by_part": dags["processor"],
            "bare": plain["processor"],
        },
        "where": where(dags, plain),
        "tasks": dags["tasks"],
        "releases": {"dag_runs": dags["releases"], "bare": plain["models"]},
    }


def _settings(home: Path, ports: Path) -> Settings:
    ports.parent.mkdir(parents=True, exist_ok=True)
    free = {f"{name}_port": _free_port() for name in ("airflow", "mlflow", "gateway")}
    return Settings(home=home, clock="replay", **free)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def running(settings: Settings, parts: list[str]) -> Iterator[Settings]:
    """A started stack, stopped at the end."""
    settings.event_clock().tick(NIGHT_US)
    try:
        up(settings, parts)
        yield settings
    finally:
        down(settings, parts)


def child(settings: Settings, option: str, out: Path) -> Any:
    """This file in a process of its own, over a home; what it has written to `out`."""
    from pipelines.stack.environment import part_environment

    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), option, str(out)]
    environment = {**os.environ, **part_environment(settings)}
    subprocess.run(command, cwd=PROJECT, env=environment, check=True, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def bare_night(settings: Settings) -> dict[str, Any]:
    return dict(child(settings, "--bare", settings.root / "bare.json"))


def bare(settings: Settings, as_of_us: int, models: list[str], out: Path) -> None:
    """Every job of the night, in the order of its tasks, in this process."""
    sys.argv.append("scheduler")  # what is preloaded for tasks is loaded here too
    import airflow_local_settings  # noqa: F401  # on Airflow's path; for its effect

    from pipelines.wiring import datasets, features, training

    features.apply(settings)
    seconds: dict[str, float] = {}

    def timed(name: str, job: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        result = job(settings, *arguments)
        seconds[name] = round(time.perf_counter() - start, 3)
        return result

    begun, used = time.perf_counter(), time.process_time()
    rows = {}
    for name in names(settings.include_dir, "datasets"):
        dag = f"dataset.{name}"
        ref = timed(f"{dag} stage", datasets.stage, name, as_of_us)
        timed(f"{dag} check", datasets.check, ref)
        timed(f"{dag} quarantine", datasets.quarantine, ref)
        rows[name] = timed(f"{dag} publish", datasets.publish, ref).rows
    for view in names(settings.include_dir, "features"):
        dag = f"features.{view}"
        built = timed(f"{dag} build", features.build, view, as_of_us)
        timed(f"{dag} check", features.check, built)
        timed(f"{dag} publish", features.publish, built)
        timed(f"{dag} materialise", features.materialise, view, as_of_us)
    releases = {}
    for model in models:
        dag = f"model.{model}.train"
        made = timed(f"{dag} training_set", training.make_training_set, model, as_of_us)
        candidate = timed(f"{dag} fit", training.fit, model, made, as_of_us)
        timed(f"{dag} evaluate", training.evaluate, candidate)
        release = timed(f"{dag} export", training.export, candidate)
        timed(f"{dag} offline_gates", training.offline_gates, release)
        row = timed(f"{dag} registered", training.register, release)
        releases[model] = {"status": row.status, "metrics": row.metrics, "training_set": row.training_set}
    wall, processor = time.perf_counter() - begun, time.process_time() - used
    out.write_text(
        json.dumps(
            {
                "wall": round(wall, 1),
                "processor": round(processor, 1),
                "jobs": seconds,
                "rows": rows,
                "models": releases,
            }
        )
    )


def dag_night(settings: Settings) -> dict[str, Any]:
    """The same as DAG runs of a stack that is up."""
    kinds = {kind: sorted(names(settings.include_dir, kind)) for kind in ("datasets", "features", "models")}
    dags = {
        "datasets": [f"dataset.{name}" for name in kinds["datasets"]],
        "features": [f"features.{name}" for name in kinds["features"]],
        "models": [f"model.{name}.train" for name in kinds["models"]],
    }
    with AirflowRest(settings.airflow_url, "admin", airflow_password(settings, "admin")) as admin:
        admin.wait_for_dags([dag for group in dags.values() for dag in group])
        conf = {"as_of": as_of_text(NIGHT_US)}
        begun, used = time.perf_counter(), _processor_s(settings)
        for dag in dags["datasets"]:
            admin.trigger(dag, run_id=RUN, conf=conf)
        until_successful(admin, [*dags["datasets"], *dags["features"]])
        featured = time.perf_counter()
        for dag in dags["models"]:
            admin.trigger(dag, run_id=RUN, conf=conf)
        until_successful(admin, dags["models"])
        wall = time.perf_counter() - begun
        processor = {part: round(now - used[part], 1) for part, now in _processor_s(settings).items()}
        tasks = [
            _task(settings, dag, run.dag_run_id, task)
            for group in dags.values()
            for dag in group
            for run in admin.runs(dag)
            for task in admin.tasks(dag, run.dag_run_id)
        ]
        releases = {name: admin.xcom(f"model.{name}.train", RUN, "registered") for name in kinds["models"]}
    return {
        "wall": round(wall, 1),
        "data_wall": round(featured - begun, 1),
        "processor": processor,
        "tasks": tasks,
        "releases": {
            name: {key: row[key] for key in ("status", "metrics", "training_set")} for name, row in releases.items()
        },
    }


def until_successful(admin: AirflowRest, dags: list[str], timeout_s: float = 300.0) -> None:
    """Wait until each DAG has a run and all its runs have ended well. One request a look: the server is part of it."""
    end = time.monotonic() + timeout_s
    while True:
        states = {run.dag_id: run.state for run in admin.runs("~")}
        if failed := [dag for dag in dags if states.get(dag) == "failed"]:
            raise SystemExit(f"failed: {failed}")
        if all(states.get(dag) == "success" for dag in dags):
            return
        if time.monotonic() > end:
            raise SystemExit(f"not within {timeout_s} s: {states}")
        time.sleep(0.4)  # between two looks


def _processor_s(settings: Settings) -> dict[str, float]:
    """Processor time so far by part of the stack, children that have ended included."""
    used = {}
    for name in sorted(_part_names(settings)):
        record, used[name] = processes.read_record(name, settings.run_dir), 0.0
        for process in processes.members(record) if record is not None else []:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[name] += times.user + times.system + times.children_user + times.children_system
    return used


def _part_names(settings: Settings) -> list[str]:
    return [path.stem for path in settings.run_dir.glob("*.json") if not path.stem.startswith(".")]


def _task(settings: Settings, dag: str, run: str, task: Any) -> dict[str, Any]:
    """A task's span and, from its log, what of it was import and work."""
    folder = settings.airflow_home / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task.task_id}"
    text = "".join(path.read_text() for path in sorted(folder.glob("attempt=*.log")))
    said = _WORK.search(text)
    span = float(task.duration or 0.0)
    imports, work, processor = (float(said[n]) for n in (2, 3, 4)) if said else (0.0, 0.0, 0.0)
    return {
        "dag": dag,
        "task": task.task_id,
        "started": task.start_date,
        "ended": task.end_date,
        "seconds": round(span, 3),
        "imports": imports,
        "work": work,
        "processor": processor,
        "overhead": round(span - imports - work, 3),
        "not_preloaded": _UNIT.sub("", said[5].strip()) if said else "",
        "tries": task.try_number,
    }


def where(dags: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Sums over tasks (they overlap, so these are more than the wall time), by kind of DAG, beside the bare jobs."""
    found: dict[str, Any] = {}
    for kind in ("dataset", "features", "model"):
        mine = [task for task in dags["tasks"] if task["dag"].startswith(f"{kind}.")]
        found[kind] = {
            "tasks": len(mine),
            **{
                part: round(sum(task[part] for task in mine), 1)
                for part in ("seconds", "overhead", "imports", "work", "processor")
            },
            "bare": round(sum(value for name, value in plain["jobs"].items() if name.startswith(f"{kind}.")), 1),
        }
    for task in dags["tasks"]:
        task["bare"] = plain["jobs"].get(f"{task['dag']} {task['task']}")
    found["wall until views are ready"] = dags["data_wall"]
    return found


def tell(result: dict[str, Any]) -> None:
    seconds, used = result["seconds"], result["processor_seconds"]
    print(f"{'DAG run':34s} {'task':14s} {'task':>7s} {'over-':>7s} {'import':>7s} {'work':>7s} {'bare':>7s}")
    print(f"{'':34s} {'':14s} {'s':>7s} {'head':>7s} {'':>7s} {'':>7s} {'job':>7s}")
    for task in sorted(result["tasks"], key=lambda each: str(each["started"])):
        bare_s = f"{task['bare']:7.2f}" if task["bare"] is not None else "      -"
        print(
            f"{task['dag']:34s} {task['task']:14s} {task['seconds']:7.2f} {task['overhead']:7.2f} "
            f"{task['imports']:7.2f} {task['work']:7.2f} {bare_s}"
            + (f"  imported {task['not_preloaded']}" if task["not_preloaded"] not in ("", "none") else "")
        )
    for kind, sums in result["where"].items():
        print(f"{kind}: {sums}")
    print(f"DAG runs {seconds['dag_runs']} s, bare jobs {seconds['bare']} s: {seconds['ratio']}x (goal {GOAL_RATIO}x)")
    print(f"processor time: {used['dag_runs']} s and {used['bare']} s; load {result['load']}; {used['by_part']}")
    for model, row in result["releases"]["dag_runs"].items():
        print(f"{model}: {row['status']}, {row['metrics']}")


if __name__ == "__main__":
    sys.exit(main())
