"""The point-in-time join on Spark beside DuckDB's, on the same rows in one process, at growing sizes.

    .venv/bin/python -m benchmarks.pit_spark [--sizes 30000 100000 300000 1000000] [--write]

A size is that of the entity frame; the three views have a third, a third and 3.3 times as many rows, a time to live of
30 days and five features. Both engines read the views from Parquet and hand back Arrow; the second of two runs counts,
so that Spark's start and its compiled code are not in it. Told are wall and processor seconds (the JVM's with Spark),
and what a further entity row costs each. Spark begins to pay where its line crosses DuckDB's, or where the rows no
longer fit one machine. Needs setup.py --spark.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.point_in_time import TTL, columns, make
from benchmarks.provenance import RESULTS, provenance, record
from pipelines.adapters import spark_join, spark_session
from pipelines.adapters.delta_lake import connect
from pipelines.features import asof
from pipelines.settings import Settings


def joins() -> list[asof.ViewJoin]:
    ttl_us = int(TTL.total_seconds() * 1_000_000)
    return [
        asof.ViewJoin(
            relation=f"v{view}",
            keys={f"k{view}": f"k{view}"},
            features={name: name for name in columns(view)},
            created="created",
            ttl_us=ttl_us,
        )
        for view in range(3)
    ]


def on_duckdb(folder: Path, entity: pa.Table) -> pa.Table:
    with connect() as connection:
        for view in range(3):
            connection.execute(f"CREATE VIEW v{view} AS FROM read_parquet('{folder}/v{view}.parquet')")
        return asof.join(connection, entity, "event_timestamp", joins())


def on_spark(settings: Settings, folder: Path, entity: pa.Table) -> pa.Table:
    session = spark_session.session(settings)
    relations = {f"v{view}": session.read.parquet(str(folder / f"v{view}.parquet")) for view in range(3)}
    return spark_join.join(session, entity, "event_timestamp", joins(), relations)


def processor_s() -> float:
    """Of this process and the JVM that it has started."""
    own = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [own, *own.children(recursive=True)])


def second_of_two(job: Callable[[], pa.Table]) -> tuple[pa.Table, dict[str, float]]:
    job()
    wall, cpu = time.perf_counter(), processor_s()
    answer = job()
    return answer, {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(processor_s() - cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS}")
    options = parser.parse_args()
    begun = provenance()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="slipway-pit-") as home:
        properties = Path(home) / "spark.properties"
        properties.write_text("spark.driver.memory=4g\nspark.driver.maxResultSize=2g\n")
        settings = Settings(home=Path(home), spark_config=str(properties))
        for size in options.sizes:
            folder = Path(home) / str(size)
            folder.mkdir()
            make(folder, {"entity": size, "views": (size // 3, size // 3, size * 10 // 3)})
            entity = pq.read_table(folder / "entity.parquet")
            ours, duckdb = second_of_two(partial(on_duckdb, folder, entity))
            theirs, spark = second_of_two(partial(on_spark, settings, folder, entity))
            one = {"rows": size, "duckdb": duckdb, "spark": spark, "equal": theirs.equals(ours)}
            found.append(one)
            print(json.dumps(one), flush=True)
    first, last = found[0], found[-1]
    if len(found) > 1:
        per_row = {
            engine: round(1e6 * (last[engine]["wall_s"] - first[engine]["wall_s"]) / (last["rows"] - first["rows"]), 2)
            for engine in ("duckdb", "spark")
        }
        print(json.dumps({"us_per_further_row": per_row}))
    if options.write:
        record(RESULTS / "pit_spark.json", begun | {"benchmark": "pit_spark", "sizes": found})


if __name__ == "__main__":
    main()
