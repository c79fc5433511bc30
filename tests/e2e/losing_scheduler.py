"""Takes a task for lost, by Airflow's own code: the end of its first worker is heard of when it is queued anew.

`python -m tests.e2e.losing_scheduler DAG RUN TASK` in the environment of an installation, whose scheduler must not be
about to queue the task (its DAG is paused). Of a scheduler's loop this plays the two steps that have to come together.
"""

from __future__ import annotations

import sys

import sqlalchemy as sa
from airflow.executors.local_executor import LocalExecutor
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dagbag import DBDagBag
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState


def main(dag_id: str, run_id: str, task_id: str) -> None:
    with create_session() as session:
        wanted = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
        task = session.scalars(sa.select(TaskInstance).filter_by(**wanted)).one()
        assert (task.state, task.next_method) == (TaskInstanceState.SCHEDULED, "execute_complete"), task.state
        task.state = TaskInstanceState.QUEUED
        session.flush()
        executor = LocalExecutor()
        executor.change_state(task.key, TaskInstanceState.SUCCESS)
        SchedulerJobRunner.process_executor_events(
            executor=executor, job_id=task.queued_by_job_id, scheduler_dag_bag=DBDagBag(), session=session
        )
        assert task.state == TaskInstanceState.UP_FOR_RETRY, task.state


if __name__ == "__main__":
    main(*sys.argv[1:])
