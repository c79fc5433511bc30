"""What tasks have read and written, as the OpenLineage provider takes it from our operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.settings import PROJECT, Settings
from pipelines.wiring.task_lineage import named, touched
from tests.builders import constant_release


class Instance:
    """As much of a task instance as a job's task uses."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def test_the_provider_gets_the_tables_of_a_task_that_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor
    from slipway_operators import AS_OF, JobOperator

    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    monkeypatch.setenv("SLIPWAY_CLOCK", "replay")
    stage = JobOperator(
        task_id="stage", job="pipelines.wiring.datasets:stage", arguments={"name": "planes"}, as_of="run"
    )
    instance = Instance()
    ref = stage.execute({"ti": instance, "params": {"as_of": "2013-01-03T00:00:00Z"}})
    assert instance.pushed[AS_OF] == ref["as_of_us"]
    read = DefaultExtractor(stage).extract_on_complete(instance)
    assert read is not None
    (source,) = read.inputs
    assert source.namespace == "file"
    assert Path(source.name).is_file()
    assert Path(source.name).name == "planes.parquet"

    publish = JobOperator(task_id="publish", job="pipelines.wiring.datasets:publish", arguments={"ref": ref})
    never = DefaultExtractor(publish).extract_on_complete(instance)
    assert never is not None
    assert (never.inputs, never.outputs) == ([], [])
    publish.result = {"dataset": "planes"}
    told = DefaultExtractor(publish).extract_on_complete(instance)
    assert told is not None
    assert [(one.namespace, one.name) for one in told.outputs] == [("file", str(tmp_path / "lake/datasets/planes"))]


def test_each_kind_of_job_names_what_it_is_made_of(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, include_dir=PROJECT / "include")
    release = constant_release(settings.releases, "air_time", 0.5)

    def tables(job: str, arguments: dict[str, Any], result: Any) -> tuple[list[str], list[str]]:
        found = touched(settings, f"pipelines.wiring.{job}", arguments, result)
        return tuple([one.name.removeprefix(f"{tmp_path}/") for one in part] for part in found)

    view = {"view": "plane", "version": "plane__1a2b"}
    assert tables("features:publish", {}, view) == (
        ["lake/datasets/planes", "lake/datasets/flights_landed"], ["lake/features/plane__1a2b"]
    )  # fmt: skip
    assert tables("features:materialise", {}, view)[1] == ["feast/online_store.db/plane__1a2b"]
    read, written = tables("training:make_training_set", {"model": "air_time"}, "abc")
    assert {"lake/datasets/flights_scheduled", "lake/datasets/flights_landed"} <= set(read)
    assert sum(name.startswith("lake/features/plane__") for name in read) == 1
    assert written == ["training_sets/abc"]
    scored, scores = tables("batch_scores:score", {"model": "air_time"}, {"release": release})
    assert f"releases/{release}" in scored
    assert scores == ["lake/scores/air_time"]
    begun = {"challenger": release, "champion": None}
    assert tables("rollout_runs:begin", {}, begun) == ([f"releases/{release}"], [])
    assert "lake/inference/response" in tables("rollout_runs:backtest", {}, {"requests": 3})[0]
    assert tables("rollouts:unknown", {}, None) == ([], [])


def test_a_table_in_a_bucket_is_named_by_bucket_and_key(tmp_path: Path) -> None:
    assert named(Settings(home=tmp_path), "s3://lake/prefix/features/x") == ("s3://lake", "prefix/features/x")
