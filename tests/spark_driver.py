"""A driver in a process of its own, for a process has one Spark: a view and a join on both engines, told as JSON.

python -m tests.spark_driver HOME MASTER PROPERTIES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa

from pipelines.adapters import spark_session
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.release import ViewPin
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import features, point_in_time
from tests import odd_days

VIEW = "carrier_punctuality"


def main(home: str, master: str, properties: str) -> None:
    settings = Settings(home=Path(home), clock="replay", spark_master=master, spark_config=properties)
    odd_days.publish(settings)
    spec = load_view(settings.include_dir, VIEW)
    rows = {
        engine: features.compute(settings, spec.model_copy(update={"engine": engine}), Span(None, odd_days.END_US), 0)
        for engine in ("duckdb", "spark")
    }
    version = spec.feast_name(settings.include_dir)
    DeltaLake(settings.lake).append(features.table_of(version), rows["spark"], partition_by=["day"])
    pin = ViewPin(view=version, entity={"carrier": "carrier"}, join_key_types={}, features=["late_rate_7d"])
    entity = pa.table({name: rows["duckdb"].column(name) for name in ("carrier", "event_timestamp")})
    joined = {
        engine: point_in_time.historical(settings.model_copy(update={"engine": engine}), entity, [pin])
        for engine in ("duckdb", "spark")
    }
    context = spark_session.session(settings).sparkContext
    told = {
        "rows": rows["spark"].num_rows,
        "view_equal": rows["spark"].to_pylist() == rows["duckdb"].to_pylist(),
        "join_equal": joined["spark"].to_pylist() == joined["duckdb"].to_pylist(),
        "executors": len(context._jsc.sc().statusTracker().getExecutorInfos()) - 1,  # one is the driver
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
