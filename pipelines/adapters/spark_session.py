"""The Spark of this process: one application, made when first asked for, thinking in UTC, with Delta, Kafka, S3."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING

from pipelines.adapters import s3_storage
from pipelines.contracts.errors import TerminalError
from pipelines.contracts.properties import read_properties
from pipelines.settings import PROJECT, Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JARS = PROJECT / ".tools" / "spark"
INSTALL = "Install it: python3 scripts/setup.py --spark"

_PROPERTIES = {
    "spark.app.name": "slipway",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    # Rows go between Python and the JVM as Arrow.
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
# Driver and executors are on this machine: nothing listens elsewhere, and work need not be cut in 200 shuffles, nor a
# table's log in 50.
_LOCAL = {
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
}
_CONNECTORS = ("delta-spark_*.jar", "hadoop-aws-*.jar")
_HADOOP = "spark.hadoop."


def missing() -> str:
    """What of Spark is not installed, in words; empty when all is there."""
    if importlib.util.find_spec("pyspark") is None:
        return "the package pyspark"
    return "" if all(any(JARS.glob(name)) for name in _CONNECTORS) else f"the connectors' jars ({JARS})"


def properties(settings: Settings) -> dict[str, str]:
    """Spark's properties for an installation: ours, then those of `spark_config`. Raises TerminalError."""
    made = {**_PROPERTIES, "spark.master": settings.spark_master}
    made["spark.jars"] = ",".join(str(jar) for jar in sorted(JARS.glob("*.jar")))
    if settings.spark_master.startswith(("local", "spark://127.0.0.1:")):
        made |= _LOCAL
    if settings.lake_uri:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")
        options = s3_storage.hadoop_options(settings.lake_endpoint, region)
        made |= {f"{_HADOOP}{name}": value for name, value in options.items()}
    if settings.spark_config:
        made |= read_properties(settings.spark_config, "SLIPWAY_SPARK_CONFIG")
    return made


def session(settings: Settings) -> SparkSession:
    """A session with temporary views of its own, on the process's one Spark application.

    Raises TerminalError when Spark is not installed, or already runs in this process on another master.
    """
    if what := missing():
        raise TerminalError("engine spark", got=f"{what} is not installed", hint=INSTALL)
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    wanted = properties(settings)
    # Spark's own scripts and its Python workers read these.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if wanted.get("spark.driver.host") == "127.0.0.1":
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    builder = SparkSession.builder
    if SparkContext._active_spark_context is None:  # noqa: SLF001 - PySpark says it nowhere else without making one
        for name, value in wanted.items():
            builder = builder.config(name, value)
    running = builder.getOrCreate()
    running.sparkContext.setLogLevel("ERROR")
    master = running.sparkContext.master
    if master != settings.spark_master:
        raise TerminalError(
            "Spark",
            got=f"runs on {master} in this process",
            expected=settings.spark_master,
            hint="One master a process.",
        )
    made = running.newSession()
    for name, value in wanted.items():
        if name.startswith(_HADOOP):  # the application may have been begun by another installation
            made.conf.set(name.removeprefix(_HADOOP), value)
    return made
