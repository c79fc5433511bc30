"""Which engine computes a view, and what is said when it is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.adapters import spark_session
from pipelines.contracts.errors import TerminalError
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import features


@pytest.mark.parametrize(("engine_of_view", "engine_of_installation"), [("spark", "duckdb"), (None, "spark")])
def test_spark_that_is_not_installed_is_told_with_the_command_that_installs_it(
    sample_lake: Settings, monkeypatch, tmp_path: Path, engine_of_view, engine_of_installation
) -> None:
    monkeypatch.setattr(spark_session, "JARS", tmp_path)
    monkeypatch.setattr(spark_session.importlib.util, "find_spec", lambda _: object())
    settings = sample_lake.model_copy(update={"engine": engine_of_installation})
    spec = load_view(settings.include_dir, "plane").model_copy(update={"engine": engine_of_view})
    with pytest.raises(TerminalError, match=r"not installed.*python3 scripts/setup\.py --spark"):
        features.compute(settings, spec, Span(None, 0), created_us=0)


def test_the_engine_does_not_change_a_views_version(sample_lake: Settings) -> None:
    spec = load_view(sample_lake.include_dir, "plane")
    on_spark = spec.model_copy(update={"engine": "spark"})
    assert on_spark.feast_name(sample_lake.include_dir) == spec.feast_name(sample_lake.include_dir)


def test_properties_of_the_installation_come_last(tmp_path: Path) -> None:
    file = tmp_path / "spark.properties"
    file.write_text("# ours\nspark.sql.shuffle.partitions = 64\nspark.executor.memory=8g\n")
    made = spark_session.properties(Settings(home=tmp_path, spark_master="spark://there:7077", spark_config=str(file)))
    assert made["spark.master"] == "spark://there:7077"
    assert made["spark.sql.shuffle.partitions"] == "64"
    assert made["spark.executor.memory"] == "8g"
    assert made["spark.sql.session.timeZone"] == "UTC"
    assert "spark.driver.bindAddress" not in made  # its executors are elsewhere
