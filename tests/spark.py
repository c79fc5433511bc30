"""Spark for tests: without it they are skipped; under `CI=true` that is a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.adapters import spark_session

LEAN = """\
# Tests run each query once on a few rows: compiling it, by Spark or by the JVM, takes longer than running it.
spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.executor.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.sql.codegen.wholeStage=false
spark.sql.codegen.factoryMode=NO_CODEGEN
spark.sql.adaptive.enabled=false
spark.sql.shuffle.partitions=1
spark.databricks.delta.snapshotPartitions=1
"""


def lean_config(folder: Path) -> str:
    """A file for `Settings.spark_config`, and the need for Spark: the test is skipped, or fails under CI, without."""
    if missing := spark_session.missing():
        assert os.environ.get("CI") != "true", f"{missing} is missing. {spark_session.INSTALL}"
        pytest.skip(f"{missing} is missing. {spark_session.INSTALL}")
    file = folder / "spark.properties"
    file.write_text(LEAN)
    return str(file)
