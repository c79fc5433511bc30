"""Batch scores by request id, where the gateway finds them when a model or its features are down.

One SQLite file a model, `<home>/batch_scores/<model>.db`, replaced in whole: whoever reads sees the old scores or the
new ones. It holds what the last batch run scored; the lake keeps all runs.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import msgspec

Value = float | int | str | bool | None


class BatchScore(msgspec.Struct, frozen=True, kw_only=True):
    """The outputs of one request by name, the release that made them, and the event time of what it knew."""

    outputs: dict[str, Value]
    release: str
    semver: str
    as_of_us: int


def file_of(root: Path, model: str) -> Path:
    """Where the scores of a model lie below an installation's home."""
    return root / "batch_scores" / f"{model}.db"


def write(file: Path, scores: Iterable[tuple[str, BatchScore]]) -> None:
    """Replace the file by these scores, by request id; of two with one id the last counts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(draft)) as connection, connection:
        connection.execute("CREATE TABLE score (request_id TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID")
        rows = ((request_id, msgspec.json.encode(score)) for request_id, score in scores)
        connection.executemany("INSERT OR REPLACE INTO score VALUES (?, ?)", rows)
    draft.replace(file)


def find(file: Path, request_id: str) -> BatchScore | None:
    """The score of a request; None without a file or without one in it.

    Raises sqlite3.Error or msgspec.MsgspecError for a file that is no such file.
    """
    if not file.exists():
        return None
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        row = connection.execute("SELECT document FROM score WHERE request_id = ?", (request_id,)).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=BatchScore)
