"""Batches on their way into the lake: rows of an erased subject leave them, too."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.subject import Subject


def drop_staged(stage: Path, subject: Subject) -> int:
    """Take the subject's rows out of every staged file; how many there were. A file is replaced whole."""
    dropped = 0
    for path in sorted(stage.rglob("*.parquet")):
        try:
            rows = pq.read_table(path)
        except FileNotFoundError:  # published meanwhile
            continue
        wanted = {name: rows.column(name).to_pylist() for name in subject.keys if name in rows.column_names}
        marks = subject.marks(wanted) if len(wanted) == len(subject.keys) else []
        if any(marks):
            draft = path.with_suffix(".erasing")
            pq.write_table(rows.filter(pa.array([not mark for mark in marks], pa.bool_())), draft, compression="zstd")
            draft.rename(path)
            dropped += sum(marks)
    return dropped
