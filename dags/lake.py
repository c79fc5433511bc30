"""One DAG for the lake: merge small files of every table, and remove what no recent version needs."""

from airflow.sdk import DAG
from slipway_dags import as_of_param, common, maintenance_cron, schedule
from slipway_operators import JobOperator

JOBS = "pipelines.wiring.lake_care"

with DAG(
    "lake.maintenance",
    description="Merge the small files of every lake table, and remove files that no recent version needs",
    schedule=schedule(maintenance_cron()),
    params={"as_of": as_of_param()},
    **common("lake", "platform"),
):
    tables = JobOperator(task_id="tables", job=f"{JOBS}:tables")
    # One at a time: it is work for nobody who waits.
    maintain = JobOperator.partial(
        task_id="maintain",
        job=f"{JOBS}:maintain",
        max_active_tis_per_dagrun=1,
        map_index_template="{{ task.arguments['table'] }}",
    ).expand(arguments=tables.output)

    tables >> maintain
