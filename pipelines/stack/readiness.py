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


def airflow_job_beats(database: Path, job_type: str, since: float, within_s: float = 60.0) -> bool:
    """Whether an Airflow job that began after `since` (Unix seconds) had a heartbeat not long ago.

    The health page is not asked, because it believes the heartbeats of processes that were killed a moment ago.
    """
    after, lately = (
        datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S") for moment in (since, time.time() - within_s)
    )
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1.0)) as connection:
            row = connection.execute(
                "select count(*) from job where job_type = ? and state = 'running' and start_date >= ?"
                " and latest_heartbeat >= ?",
                (job_type, after, max(after, lately)),
            ).fetchone()
    except sqlite3.Error:
        return False
    return bool(row[0])


def beats(file: Path, since: float, within_s: float = 30.0) -> bool:
    """Whether a file was touched after `since` (Unix seconds) and not long ago."""
    try:
        touched = file.stat().st_mtime
    except FileNotFoundError:
        return False
    return touched >= since and time.time() - touched <= within_s
