"""Every spec has its DAGs, every parse gives the same bytes, and a parse costs next to nothing."""

from __future__ import annotations

import ast
import importlib
import inspect
import shutil

import pytest

from pipelines.settings import PROJECT
from pipelines.spec.loading import load_all

SPECS = load_all(PROJECT / "include")


def expected_ids() -> set[str]:
    ids = (
        {"lake.maintenance"}
        | {f"dataset.{name}" for name in SPECS.datasets}
        | {f"features.{name}" for name in SPECS.views}
    )
    for name, spec in SPECS.models.items():
        ids |= {f"model.{name}.train", f"model.{name}.rollout"}
        ids |= {f"model.{name}.monitor"} if spec.monitor else set()
        ids |= {f"model.{name}.score"} if spec.score else set()
    return ids


def test_no_file_has_an_import_error(parsed):
    assert parsed.errors == {}


def test_every_spec_has_its_dags_and_there_are_no_others(parsed):
    assert set(parsed.dags) == expected_ids()


def test_two_parses_give_the_same_bytes(parsings):
    first, second = parsings
    assert first.dags == second.dags


def test_a_parse_imports_nothing_heavy_and_its_time_is_told(parsed, capsys):
    with capsys.disabled():
        files = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in sorted(parsed.files.items()))
        print(
            f"\nparse time of {len(parsed.dags)} DAGs: {parsed.seconds['parse'] * 1000:.0f} ms first, "
            f"{parsed.seconds['parse_again'] * 1000:.0f} ms again ({files})"
        )
    assert parsed.heavy == []
    assert parsed.seconds["parse_again"] < 10


@pytest.mark.parametrize("dag_id", sorted(expected_ids()))
def test_each_dag_has_as_of_first_one_run_at_a_time_and_a_runbook(parsed, dag_id):
    dag = parsed.dag(dag_id)
    assert next(iter(dict(dag["params"]))) == "as_of"
    assert dag["max_active_runs"] == 1
    assert dag.get("catchup", False) is False
    assert "slipway" in dag["tags"]
    assert dag["doc_md"].startswith(f"# {dag_id}\n")
    assert "dagRuns" in dag["doc_md"]


def test_every_job_exists_and_takes_the_arguments_it_is_given(parsed):
    assert len(parsed.jobs) > 60
    for job in parsed.jobs:
        module, _, name = job["job"].partition(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(job["arguments"]) <= set(parameters), job
        required = {key for key, each in parameters.items() if each.default is each.empty}
        assert required - {"settings", "as_of_us"} <= set(job["arguments"]), job


def test_each_stage_has_a_gate_without_a_worker_and_a_task_behind_it(parsed):
    for name, spec in SPECS.models.items():
        tasks = {task["__var"]["task_id"]: task["__var"] for task in parsed.dag(f"model.{name}.rollout")["tasks"]}
        for stage in spec.rollout.stages:
            gate = tasks[f"gate_{stage.name}"]
            assert gate["start_from_trigger"] is True
            assert f"advance_{stage.name}" in gate["downstream_task_ids"]
            assert "stopped" in gate["downstream_task_ids"]


def test_the_lake_is_maintained_weekly_or_when_the_setting_says(monkeypatch):
    from slipway_dags import maintenance_cron, schedule

    assert schedule(maintenance_cron()).expression == "0 4 * * 0"
    monkeypatch.setenv("SLIPWAY_LAKE_MAINTENANCE", "30 2 * * *")
    assert schedule(maintenance_cron()).expression == "30 2 * * *"
    monkeypatch.setenv("SLIPWAY_LAKE_MAINTENANCE", "")
    assert schedule(maintenance_cron()) is None


def test_dag_files_only_wire():
    """No clock, network, database or library of any kind: Airflow's words, ours, and the specs."""
    allowed = ("airflow.", "slipway_", "pipelines.spec.")
    for path in sorted((PROJECT / "dags").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(name.startswith(allowed) for name in names), (path.name, names)
            assert not isinstance(node, ast.Try | ast.While | ast.Lambda), path.name


def test_other_specs_make_other_dags_and_a_broken_one_is_told_by_file_and_line(tmp_path):
    from tests.dags.conftest import Parsing

    include = tmp_path / "include"
    shutil.copytree(PROJECT / "include", include)
    broken = include / "features" / "plane.yaml"
    broken.write_text(broken.read_text().replace("publish_every:", "publish_evry:"))
    auto = include / "models" / "late_arrival.yaml"
    auto.write_text(auto.read_text().replace("start: manual", "start: auto"))
    found = Parsing(SLIPWAY_INCLUDE_DIR=str(include)).result()
    assert [name.rpartition("/")[2] for name in found.errors] == ["features.py"]
    message = next(iter(found.errors.values()))
    assert "include/features/plane.yaml:" in message
    assert "Did you mean 'publish_every'" in message
    assert {"dataset.weather", "model.air_time.train"} <= set(found.dags)
    started = [task["__var"]["task_id"] for task in found.dag("model.late_arrival.train")["tasks"]]
    by_hand = [task["__var"]["task_id"] for task in found.dag("model.air_time.train")["tasks"]]
    assert "start_rollout" in started
    assert "start_rollout" not in by_hand


def test_a_task_opens_the_spec_of_its_own_dag_alone(monkeypatch):
    from slipway_dags import spec_names

    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "model.late_arrival.rollout")
    assert list(spec_names("models")) == ["late_arrival"]
    monkeypatch.delenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID")
    assert list(spec_names("models")) == sorted(SPECS.models)


def test_a_replay_has_no_schedule_by_time(monkeypatch):
    from slipway_dags import dataset_asset, schedule

    assert schedule("0 3 * * *").expression == "0 3 * * *"
    monkeypatch.setenv("SLIPWAY_CLOCK", "replay")
    assert schedule("0 3 * * *") is None
    assert [each.name for each in schedule("0 3 * * *", [dataset_asset("weather")]).objects] == ["lake://weather"]
