"""Parses the DAG files in this (fresh) process, without a database, and prints what came of it as JSON."""

from __future__ import annotations

import json
import sys
import time

HEAVY = (
    "deltalake", "duckdb", "evidently", "feast", "great_expectations", "ibis", "lightgbm", "mlflow", "numpy",
    "onnxruntime", "optuna", "pandas", "pyarrow", "scipy", "sklearn",
)  # fmt: skip


def main() -> None:
    folder = sys.argv[1]
    began = time.perf_counter()
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.serialized_objects import DagSerialization

    imported = time.perf_counter() - began
    began = time.perf_counter()
    bag = DagBag(folder)
    first = time.perf_counter() - began
    # Sorted keys, as Airflow hashes a DAG's version: the order of keys of its own dictionaries follows PYTHONHASHSEED.
    dags = {
        dag_id: json.dumps(DagSerialization.to_dict(bag.dags[dag_id]), sort_keys=True) for dag_id in sorted(bag.dags)
    }
    for dag_id, serialised in dags.items():
        read_back = DagSerialization.from_dict(json.loads(serialised))
        assert set(read_back.task_ids) == set(bag.dags[dag_id].task_ids)
    jobs = [
        {"dag": dag_id, "task": task.task_id, "job": task.job, "arguments": sorted(task.arguments)}
        for dag_id in sorted(bag.dags)
        for task in bag.dags[dag_id].tasks
        if hasattr(task, "job")
    ]
    heavy = [name for name in HEAVY if name in sys.modules]
    began = time.perf_counter()
    again = DagBag(folder)
    print(
        json.dumps(
            {
                "errors": bag.import_errors,
                "heavy": heavy,
                "seconds": {"airflow": imported, "parse": first, "parse_again": time.perf_counter() - began},
                "files": {stat.file: stat.duration.total_seconds() for stat in again.dagbag_stats},
                "dags": dags,
                "jobs": jobs,
            }
        )
    )


if __name__ == "__main__":
    main()
