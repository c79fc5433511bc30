"""The question that Airflow still asks about a rollout, closed when a command has answered it."""

from __future__ import annotations

from pipelines.contracts.errors import SlipwayError
from pipelines.settings import Settings

GOES_ON = ("running", "promoted")


def close(settings: Settings, rollout_id: str) -> str:
    """Let the DAG run that asks about a rollout go on; the run's id, or nothing where none asks or Airflow is not up.

    A model's DAG has one run at a time: one that went on asking would keep the next rollout from starting. The mark
    decides nothing: the tasks behind it read the rollout, and end, or start a run that takes it up.
    """
    from pipelines.adapters.airflow_rest import AirflowRest
    from pipelines.stack import airflow_password, status
    from pipelines.wiring import rollouts

    rollout = rollouts.load(settings, rollout_id)
    is_asked = rollout.status == "held" or (rollout.status == "running" and rollout.stage == "approval")
    if is_asked or status(settings, ["airflow-api-server"])[0].state != "running":
        return ""
    dag_id, answer = f"model.{rollout.model}.rollout", "success" if rollout.status in GOES_ON else "failed"
    try:
        with AirflowRest(settings.airflow_url, "admin", airflow_password(settings)) as airflow:
            for run in (run.dag_run_id for run in airflow.runs(dag_id) if not run.finished):
                asking = [task.task_id for task in airflow.tasks(dag_id, run) if task.state == "awaiting_input"]
                if asking and airflow.xcom(dag_id, run, "start")["id"] == rollout_id:
                    airflow.mark(dag_id, run, asking[0], answer)
                    return run
    except SlipwayError:  # the rollout is decided; Airflow's run is a courtesy
        return ""
    return ""
