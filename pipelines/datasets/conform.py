"""Raw rows to the declared columns: SQL that reads every value as its type and says which cannot be read."""

from __future__ import annotations

from pipelines.datasets.staging import RAW, ROW, UNREADABLE
from pipelines.spec.dataset import DatasetSpec
from pipelines.spec.fields import NUMERIC

SQL_TYPES = {
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "date": "DATE",
}


def conforming_sql(spec: DatasetSpec, source: str, after_us: int | None, as_of_us: int) -> str:
    """SELECT of the declared columns, `known_at`, `day` and the batch's own columns, for a span of knowledge.

    source: a relation's name, with at least the declared columns. A value that cannot be read as its type is null and
    named in `_unreadable`; NaN is null. A row whose time of knowledge cannot be read counts as known at `as_of_us`.
    """
    typed, faults = [], []
    for name, column in spec.columns.items():
        kind = SQL_TYPES[column.type]
        value = f'TRY_CAST("{name}" AS {kind})'
        if column.type in ("float32", "float64"):
            value = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"
        typed.append(f'{value} AS "{name}"')
        shown = "number" if column.type in NUMERIC else column.type
        faults.append(
            f'CASE WHEN "{name}" IS NOT NULL AND TRY_CAST("{name}" AS {kind}) IS NULL '
            f"THEN '{name}: ''' || CAST(\"{name}\" AS VARCHAR) || ''' is not a {shown} ({column.type})' END"
        )
    known = f'CAST("{spec.known_at}" AS TIMESTAMPTZ) + to_microseconds({spec.arrival_delay.us})'
    unreadable = f"nullif(concat_ws('; ', {', '.join(faults)}), '')"
    raw = f'CASE WHEN {UNREADABLE} IS NOT NULL OR "{spec.known_at}" IS NULL THEN to_json(whole)::VARCHAR END AS {RAW}'
    span = "" if after_us is None else f"AND known_at > make_timestamptz({after_us})"
    return f"""
        WITH read AS (
            SELECT {", ".join(typed)}, {unreadable} AS {UNREADABLE}, raw AS whole
            FROM {source} AS raw
        ), placed AS (
            SELECT *, coalesce({known}, make_timestamptz({as_of_us})) AS known_at FROM read
        )
        SELECT * EXCLUDE (whole), CAST(known_at AS DATE) AS day,
               {raw},
               row_number() OVER (ORDER BY known_at, {", ".join(f'"{name}"' for name in spec.key)}) - 1 AS {ROW}
        FROM placed WHERE known_at <= make_timestamptz({as_of_us}) {span}
        ORDER BY {ROW}"""
