"""Whether a part does its work yet: each question is cheap, and false rather than an error."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

_direct = build_opener(ProxyHandler({}))


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with _direct.open(url, timeout=2.0) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (OSError, HTTPException):  # refused, reset, timed out, not HTTP; an error status is an OSError too
        return False


def airflow_job_beats(database: str, job_type: str, since: float, within_s: float = 60.0) -> bool:
    """Whether an Airflow job that began after `since` (Unix seconds) had a heartbeat not long ago.

    `database` is the URL of Airflow's own. The health page is not asked, because it believes the heartbeats of
    processes that were killed a moment ago.
    """
    after, lately = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S") for moment in (since, time.time() - within_s)
    )
    asked = (job_type, after, max(after, lately))
    try:
        if database.startswith("postgresql:"):
            return _beats_in_postgres(database, asked)
        path = database.removeprefix("sqlite:///")
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)) as connection:
            return bool(connection.execute(_JOBS.format("?", ""), asked).fetchone()[0])
    except sqlite3.Error:
        return False


_JOBS = (
    "select count(*) from job where job_type = {0} and state = 'running' and start_date >= {0}{1}"
    " and latest_heartbeat >= {0}{1}"
)


def _beats_in_postgres(url: str, asked: tuple[str, str, str]) -> bool:
    import psycopg  # `status` of an installation on SQLite does without

    try:
        # Airflow's times carry a zone there; ours are UTC.
        with psycopg.connect(url, connect_timeout=2, options="-c timezone=UTC") as connection:
            found = connection.execute(_JOBS.format("%s", "::timestamptz"), asked).fetchone()
    except psycopg.Error:
        return False
    return bool(found and found[0])


def beats(file: Path, since: float, within_s: float = 30.0) -> bool:
    """Whether a file was touched after `since` (Unix seconds) and not long ago."""
    try:
        touched = file.stat().st_mtime
    except FileNotFoundError:
        return False
    return touched >= since and time.time() - touched <= within_s
