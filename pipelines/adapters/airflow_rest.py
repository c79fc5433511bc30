"""Airflow's public REST API (v2), as far as Slipway drives it: start a DAG run, watch it, answer a person's task.

One client per user; the token is fetched on first use and again when it has run out. Calls that may be repeated are
repeated on a lost connection; starting a run is made repeatable by giving it a run id.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

from pipelines.contracts.errors import NotFoundError, TerminalError, TransientError

FINISHED = frozenset({"success", "failed"})
ATTEMPTS = 4
SETTLED_S = 4.0
"""Airflow 3.3 takes a task for lost that is answered before the scheduler has heard of the end of its asking worker."""
T = TypeVar("T")


class DagRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a DAG. `state` is queued, running, success or failed; times are RFC 3339 text or None."""

    dag_id: str
    dag_run_id: str
    state: str
    run_type: str = ""
    start_date: str | None = None
    end_date: str | None = None
    duration: float | None = None
    conf: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.state in FINISHED


class TaskState(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a run. `state` None: not looked at yet; `deferred`: a gate waits; `awaiting_input`: a person."""

    task_id: str
    state: str | None
    operator_name: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    duration: float | None = None
    try_number: int = 0
    hostname: str | None = None
    pid: int | None = None


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a human-in-the-loop task asks, and its answer once there is one."""

    task_id: str
    subject: str
    options: list[str]
    body: str | None = None
    assigned_users: list[str] = []
    chosen: list[str] | None = None
    answered_by: str | None = None


Progress = Callable[[DagRun, Sequence[TaskState]], None]


class AirflowRest:
    """A session of one user. `url` is the api-server's base, such as http://127.0.0.1:8080."""

    def __init__(self, url: str, username: str, password: str, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.username = username
        self._password = password
        self._token: str | None = None
        # An installation talks to its own server on this machine: a proxy of the environment has no say in it.
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def login(self) -> None:
        """Fetch a token. Raises TerminalError when user or password are wrong, TransientError when nobody answers."""
        answer = self._send("POST", "/auth/token", json={"username": self.username, "password": self._password})
        if answer.status_code == 401:
            raise TerminalError(
                f"Airflow login at {self.url}", got=f"user {self.username} refused", hint="See $SLIPWAY_HOME/secrets."
            )
        self._check(answer, "Airflow login")
        self._token = str(_json(answer)["access_token"])

    def health(self) -> dict[str, Any]:
        """State and last heartbeat by component (`metadatabase`, `scheduler`, `triggerer`, `dag_processor`)."""
        answer = self._send("GET", "/api/v2/monitor/health")
        self._check(answer, "Airflow health")
        return dict(_json(answer))

    def dag_ids(self, *, tag: str | None = None) -> list[str]:
        """Ids of all DAGs the server knows, sorted."""
        query: dict[str, Any] = {"tags": tag} if tag else {}
        return sorted(str(dag["dag_id"]) for dag in self._pages("/api/v2/dags", "dags", query))

    def import_errors(self) -> dict[str, str]:
        """Stack traces by DAG file; empty when every file parses."""
        return {
            str(e["filename"]): str(e["stack_trace"]) for e in self._pages("/api/v2/importErrors", "import_errors", {})
        }

    def wait_for_dags(self, ids: Sequence[str], *, timeout_s: float = 120.0, poll_s: float = 0.5) -> None:
        """Return once the server knows every DAG of `ids`. Raises TerminalError naming the missing ones."""
        end = time.monotonic() + timeout_s
        while missing := sorted(set(ids) - set(self.dag_ids())):
            if time.monotonic() > end:
                raise TerminalError(
                    "DAGs", got=f"not parsed: {missing[:5]}", hint="\n".join(self.import_errors().values())[:2000]
                )
            time.sleep(poll_s)  # the API can only be asked

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """Pause or unpause a DAG."""
        self._json("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": paused})

    def trigger(
        self, dag_id: str, *, run_id: str | None = None, conf: Mapping[str, Any] | None = None, note: str = ""
    ) -> DagRun:
        """Start a run with `conf`. With a `run_id` that exists already that run is returned: starting twice is once.

        Raises NotFoundError when the DAG does not exist and TerminalError when a param is wrong.
        """
        body: dict[str, Any] = {"logical_date": None, "conf": dict(conf or {})}
        if note:
            body["note"] = note
        if run_id:
            body["dag_run_id"] = run_id
        answer = self._authorised("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body)
        if answer.status_code == 409 and run_id:
            return self.run(dag_id, run_id)
        self._check(answer, f"start of {dag_id}")
        return _convert(_json(answer), DagRun)

    def run(self, dag_id: str, run_id: str) -> DagRun:
        """The run as it stands. Raises NotFoundError."""
        return _convert(self._json("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"), DagRun)

    def runs(self, dag_id: str) -> list[DagRun]:
        """All runs of a DAG, oldest first."""
        rows = self._pages(f"/api/v2/dags/{dag_id}/dagRuns", "dag_runs", {"order_by": "run_after"})
        return [_convert(row, DagRun) for row in rows]

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """The run's tasks, by start; those not started come last."""
        rows = self._pages(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances", {})
        return sorted(
            (_convert(row, TaskState) for row in rows), key=lambda task: (task.start_date or "~", task.task_id)
        )

    def wait(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout_s: float = 3600.0,
        poll_s: float = 0.3,
        on_progress: Progress | None = None,
        until: Callable[[DagRun, Sequence[TaskState]], bool] | None = None,
    ) -> DagRun:
        """Watch a run until it has finished, or until `until` says so; the caller reads `.state`.

        `on_progress` is called with (run, tasks) whenever a task's or the run's state has changed.
        Raises TransientError when `timeout_s` (wall) has passed; it names the tasks that have not ended.
        """
        end = time.monotonic() + timeout_s
        seen: object = None
        while True:
            run = self.run(dag_id, run_id)
            if on_progress is not None or until is not None:
                tasks = self.tasks(dag_id, run_id)
                state = (run.state, tuple((task.task_id, task.state, task.try_number) for task in tasks))
                if on_progress is not None and state != seen:
                    seen = state
                    on_progress(run, tasks)
                if until is not None and until(run, tasks):
                    return run
            if run.finished:
                return run
            if time.monotonic() > end:
                waiting = [f"{t.task_id}={t.state}" for t in self.tasks(dag_id, run_id) if t.end_date is None]
                raise TransientError(
                    f"{dag_id} {run_id}", got=f"{run.state} after {timeout_s:g} s", hint=", ".join(waiting)
                )
            time.sleep(poll_s)  # the API can only be asked

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """A task's result. Raises NotFoundError when it has none."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        value = self._json("GET", path, params={"stringify": "false"})["value"]
        if isinstance(value, str) and value[:1] in ("{", "["):  # what a trigger pushes is stored as text
            return json.loads(value)
        return value

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """A task's log as text, one event a line."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self._json("GET", path, params={"full_content": "true"})["content"]
        if isinstance(content, str):
            return content
        return "\n".join(line if isinstance(line, str) else told_by(line) for line in content)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Set a task's state by hand (`success`, `failed`, `skipped`), as the button in the UI does."""
        self._json(
            "PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}", json={"new_state": state}
        )

    def clear(self, dag_id: str, run_id: str, task_ids: Sequence[str] = ()) -> None:
        """Clear tasks, and all behind them, so that they run again; without `task_ids` the failed ones."""
        body: dict[str, Any] = {
            "dry_run": False,
            "dag_run_id": run_id,
            "include_downstream": True,
            "reset_dag_runs": True,
        }
        body |= {"task_ids": list(task_ids), "only_failed": False} if task_ids else {"only_failed": True}
        self._json("POST", f"/api/v2/dags/{dag_id}/clearTaskInstances", json=body)

    def questions(self, dag_id: str, run_id: str) -> list[Question]:
        """What the run's human-in-the-loop tasks have asked so far."""
        return [
            _question(row)
            for row in self._pages(f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/hitlDetails", "hitl_details", {})
        ]

    def answer(
        self, dag_id: str, run_id: str, task_id: str, option: str, params: Mapping[str, Any] | None = None
    ) -> None:
        """Answer a human-in-the-loop task as this client's user, not earlier than `SETTLED_S` after the question.

        Raises TerminalError for a user that is not assigned, an unknown option, or a second answer.
        """
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/-1/hitlDetails"
        asked_at = datetime.fromisoformat(self._json("GET", path)["created_at"])
        # An earlier answer would be lost: see SETTLED_S.
        time.sleep(max(0.0, SETTLED_S - (datetime.now(UTC) - asked_at).total_seconds()))
        self._json("PATCH", path, json={"chosen_options": [option], "params_input": dict(params or {})})

    def _json(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = self._authorised(method, path, **kwargs)
        self._check(answer, f"{method} {path}")
        return _json(answer)

    def _pages(self, path: str, key: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        while True:
            page = self._json("GET", path, params={**query, "limit": 100, "offset": len(rows)})
            rows += page[key]
            if not page[key] or len(rows) >= page.get("total_entries", len(rows)):
                return rows

    def _authorised(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        if self._token is None:
            self.login()
        answer = self._send(method, path, headers={"Authorization": f"Bearer {self._token}"}, **kwargs)
        if answer.status_code == 401:
            self.login()
            answer = self._send(method, path, headers={"Authorization": f"Bearer {self._token}"}, **kwargs)
        return answer

    def _send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        for attempt in range(ATTEMPTS):
            try:
                return self._http.request(method, path, **kwargs)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS - 1:
                    raise TransientError(
                        f"Airflow at {self.url}", got=type(error).__name__, hint="`slipway status` shows what runs."
                    ) from error
                time.sleep(0.25 * 2**attempt)  # a server that restarts is back soon
        raise AssertionError

    @staticmethod
    def _check(answer: httpx.Response, what: str) -> None:
        if answer.is_success:
            return
        detail = answer.text[:500]
        if answer.status_code == 404:
            raise NotFoundError(what, got=detail)
        if answer.status_code >= 500:
            raise TransientError(what, got=f"{answer.status_code} {detail}")
        raise TerminalError(what, got=f"{answer.status_code} {detail}")


def told_by(line: Mapping[str, Any]) -> str:
    """A structured line of a task's log as text: what happened and, of a failure, each error with its message."""
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in line.get("error_detail") or ()]
    return "\n  ".join([str(line.get("event", line)), *errors])


def _json(answer: httpx.Response) -> Any:
    """The body; a page of the web UI in its place means that the path is no API of this server."""
    kind = answer.headers.get("content-type", "")
    if not kind.startswith("application/json"):
        raise TerminalError(f"{answer.request.url}", got=kind or "no content type", expected="application/json")
    return answer.json()


def _convert(row: object, kind: type[T]) -> T:
    return msgspec.convert(row, kind, strict=False)


def _question(row: Mapping[str, Any]) -> Question:
    answered_by = row.get("responded_by_user")
    return Question(
        task_id=row["task_instance"]["task_id"],
        subject=row["subject"],
        options=row["options"],
        body=row.get("body"),
        assigned_users=[user["id"] for user in row.get("assigned_users") or []],
        chosen=row.get("chosen_options"),
        answered_by=answered_by["id"] if answered_by else None,
    )
