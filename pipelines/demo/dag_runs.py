"""DAG runs of the rehearsal: started by REST with an `as_of`, watched, and counted for the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipelines.adapters.airflow_rest import AirflowRest, DagRun
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import SlipwayError, TerminalError

APPROVE = "Approve"
READING_S = 3.0
"""A person reads before answering. An answer within the second in which the task parks can overtake its parking."""


def as_of_text(as_of_us: int) -> str:
    """An event time as DAG params take it."""
    return from_us(as_of_us).isoformat().replace("+00:00", "Z")


class DagRuns:
    """Starts and watches runs; `done` lists those that ended, for the report."""

    def __init__(self, admin: AirflowRest, approver: AirflowRest, prefix: str) -> None:
        self._admin = admin
        self._approver = approver
        self._prefix = prefix
        self.done: list[dict[str, Any]] = []

    def start(self, dag_id: str, name: str, as_of_us: int, conf: Mapping[str, str] | None = None) -> DagRun:
        """Start a run called `name`; a run of that name is not started twice."""
        given = {"as_of": as_of_text(as_of_us), **(conf or {})}
        return self._admin.trigger(dag_id, run_id=f"{self._prefix}__{name}", conf=given)

    def finish(self, run: DagRun, *, may_fail: bool = False, timeout_s: float = 600.0) -> DagRun:
        """Wait for a run's end. Raises TerminalError with the failed task's log when it failed and may not.

        A rollout whose gate has failed ends as a failed run: that is how people see it in Airflow.
        """
        ended = self._admin.wait(run.dag_id, run.dag_run_id, timeout_s=timeout_s, poll_s=0.25)
        self._note(ended)
        if ended.state != "success" and not may_fail:
            raise TerminalError(f"DAG run {run.dag_id} {run.dag_run_id}", got=ended.state, hint=self._why(run))
        return ended

    def result(self, run: DagRun, task_id: str) -> Any:
        """What a task of the run has returned."""
        return self._admin.xcom(run.dag_id, run.dag_run_id, task_id)

    def run(self, dag_id: str, name: str, as_of_us: int, conf: Mapping[str, str] | None = None) -> DagRun:
        """Start and finish."""
        return self.finish(self.start(dag_id, name, as_of_us, conf))

    def together(self, dag_ids: Sequence[str], name: str, as_of_us: int) -> list[DagRun]:
        """Start one run of each, side by side, and finish them all."""
        runs = [self.start(dag_id, name, as_of_us) for dag_id in dag_ids]
        with ThreadPoolExecutor(max_workers=4) as pool:
            return list(pool.map(self.finish, runs))

    def started_by_assets(
        self, dag_ids: Sequence[str], before: Mapping[str, int], *, timeout_s: float = 300.0
    ) -> list[DagRun]:
        """Wait until each DAG has one more finished run than `before`: those that asset events started."""
        end = time.monotonic() + timeout_s
        started: list[DagRun] = []
        for dag_id in dag_ids:
            while True:
                runs = self._admin.runs(dag_id)
                if len(runs) > before[dag_id] and all(run.finished for run in runs):
                    break
                if time.monotonic() > end:
                    raise TerminalError(f"DAG {dag_id}", got="no run", expected="a run started by asset events")
                time.sleep(0.3)  # Airflow's API has no way to be told of a run's end
            for run in runs[before[dag_id] :]:
                self._note(run)
                started.append(run)
                if run.state != "success":
                    raise TerminalError(f"DAG run {dag_id} {run.dag_run_id}", got=run.state, hint=self._why(run))
        return started

    def counts(self, dag_ids: Sequence[str]) -> dict[str, int]:
        """How many runs each DAG has."""
        return {dag_id: len(self._admin.runs(dag_id)) for dag_id in dag_ids}

    def approve(self, run: DagRun, task_id: str, reason: str, *, timeout_s: float = 60.0) -> None:
        """Answer a question of the run, as the approver, once it is asked."""
        end = time.monotonic() + timeout_s
        while not any(
            q.task_id == task_id and not q.chosen for q in self._approver.questions(run.dag_id, run.dag_run_id)
        ):
            state = self._admin.run(run.dag_id, run.dag_run_id)
            if state.finished or time.monotonic() > end:
                raise TerminalError(
                    f"question {task_id} of {run.dag_id}",
                    got=f"run {state.state}",
                    expected="asked",
                    hint=self._why(run),
                )
            time.sleep(0.2)  # nor of a question
        time.sleep(READING_S)  # see there
        self._approver.answer(run.dag_id, run.dag_run_id, task_id, APPROVE, {"reason": reason})

    def _note(self, run: DagRun) -> None:
        self.done.append(
            {
                "dag_id": run.dag_id,
                "run_id": run.dag_run_id,
                "state": run.state,
                "seconds": run.duration,
                "by": run.run_type,
            }
        )

    def _why(self, run: DagRun) -> str:
        failed = [task for task in self._admin.tasks(run.dag_id, run.dag_run_id) if task.state == "failed"]
        tails = []
        for task in failed[:2]:
            try:
                log = self._admin.log(run.dag_id, run.dag_run_id, task.task_id, max(task.try_number, 1))
            except SlipwayError as error:  # the log is a courtesy; its absence must not hide the failure
                log = str(error)
            tails.append(f"{task.task_id}: ...{log[-1500:]}")
        return "\n".join(tails)
