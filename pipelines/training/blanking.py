"""Rows of an erased subject in training sets: found, and blanked, for a training set keeps its rows and its name.

    training_sets/<digest>/erased.json     when rows were blanked: which file counts now, and how many rows by erasure

The digest goes on naming what the set was when models were fitted on it. Positions stay, so that what counts rows
(a candidate's parts) stays right; nothing but time and truth is left of a blanked row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts import durable_files
from pipelines.contracts.canonical import canonical_json, file_digest
from pipelines.datasets.subject import Subject
from pipelines.training.training_set import ERASED, KEYS, TRUTH, Erased, data_file, erased_of, manifest_of


def holding(
    root: Path, subject: Subject, inputs: Callable[[str], Sequence[Mapping[str, str]]]
) -> Iterator[tuple[str, str, int]]:
    """(digest, model, rows) of each training set that holds rows of the subject. inputs: key to column, by model."""
    for folder in sorted(path.parent for path in root.glob("*/manifest.json") if not path.parent.name.startswith(".")):
        model = manifest_of(root, folder.name).model
        if rows := sum(_marks(folder, subject, inputs(model))):
            yield folder.name, model, rows


def blank(folder: Path, subject: Subject, inputs: Sequence[Mapping[str, str]], erasure: str) -> int:
    """Blank the subject's rows; how many there were. The new file is named first, then the old one goes."""
    import pyarrow.parquet as pq

    marks = _marks(folder, subject, inputs)
    before = erased_of(folder)
    if any(marks):
        table = pq.read_table(data_file(folder))
        hit = pa.array(marks, pa.bool_())
        for name in table.column_names:
            if name not in (*KEYS, *TRUTH):
                column = table.column(name)
                table = _set(table, name, pc.if_else(hit, pa.scalar(None, column.type), column))
        # A request's id may have been made of the key.
        names = [f"{erasure}-{row}" for row in range(table.num_rows)]
        table = _set(table, "request_id", pc.if_else(hit, pa.array(names), table.column("request_id")))
        staged = folder / ".blanked.parquet"
        pq.write_table(table, staged, compression="zstd", coerce_timestamps="us")
        digest = file_digest(staged)
        staged.rename(folder / f"data-{digest[:12]}.parquet")
        rows = dict(before.rows) if before is not None else {}
        rows[erasure] = rows.get(erasure, 0) + sum(marks)
        made = Erased(file=f"data-{digest[:12]}.parquet", digest=digest, rows=rows)
        durable_files.write(folder / ERASED, canonical_json(msgspec.to_builtins(made)))
    if (now := erased_of(folder)) is not None:
        for path in folder.glob("*.parquet"):
            if path.name != now.file:
                path.unlink()
    return sum(marks)


def _marks(folder: Path, subject: Subject, inputs: Sequence[Mapping[str, str]]) -> list[bool]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(data_file(folder))
    there = set(file.schema_arrow.names)
    found = [False] * file.metadata.num_rows
    for names in inputs:
        if set(names.values()) <= there:
            table = file.read(columns=sorted(set(names.values())))
            columns = {name: table.column(name).to_pylist() for name in table.column_names}
            found = [one or other for one, other in zip(found, subject.marks(columns, names), strict=True)]
    return found


def _set(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), column)
