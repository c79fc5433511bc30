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


def key_sql(spec: DatasetSpec, json_column: str | None = None) -> str:
    """A row's key as a list of texts, from its columns or from its JSON text in a column."""
    parts = []
    for name in spec.key:
        kind = SQL_TYPES[spec.columns[name].type]
        value = f'"{name}"' if json_column is None else f"json_extract_string(\"{json_column}\", '$.{name}')"
        parts.append(f"CAST(TRY_CAST({value} AS {kind}) AS VARCHAR)")
    return f"list_value({', '.join(parts)})"


def read_as_declared(spec: DatasetSpec) -> tuple[list[str], str]:
    """SQL of each declared column read as its type, and of what of a row cannot be read (null: all can)."""
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
    return typed, f"nullif(concat_ws('; ', {', '.join(faults)}), '')"


def conforming_sql(
    spec: DatasetSpec, source: str, after_us: int | None, as_of_us: int, settled: str | None = None
) -> str:
    """SELECT of the declared columns, `known_at`, `day` and the batch's own columns, for a span of knowledge.

    source: a relation's name, with at least the declared columns. A value that cannot be read as its type is null and
    named in `_unreadable`; NaN is null. A row whose time of knowledge cannot be read counts as known at `as_of_us`.
    settled: a relation with a column `key` (`key_sql`) of all rows that were dealt with before. Then a row from before
    the span that is not among them turned up late: it is taken too, as known at `as_of_us`, which is the truth.
    """
    typed, unreadable = read_as_declared(spec)
    known = f'CAST("{spec.known_at}" AS TIMESTAMPTZ) + to_microseconds({spec.arrival_delay.us})'
    unsure = [f"{UNREADABLE} IS NOT NULL", *(f'"{name}" IS NULL' for name in (spec.known_at, *spec.key))]
    raw = f"CASE WHEN {' OR '.join(unsure)} THEN to_json(whole)::VARCHAR END AS {RAW}"
    now = f"make_timestamptz({as_of_us})"
    span, known_at = "true", "__told_at"
    if after_us is not None:
        span = f"__told_at > make_timestamptz({after_us})"
        known_at = f"CASE WHEN {span} THEN __told_at ELSE {now} END"
        if settled is not None:
            span = f"({span} OR {key_sql(spec)} NOT IN (SELECT key FROM {settled}))"
    return f"""
        WITH read AS (
            SELECT {", ".join(typed)}, {unreadable} AS {UNREADABLE}, raw AS whole
            FROM {source} AS raw
        ), placed AS (
            SELECT *, coalesce({known}, {now}) AS __told_at FROM read
        ), taken AS (
            SELECT * EXCLUDE (__told_at), {known_at} AS known_at FROM placed WHERE __told_at <= {now} AND {span}
        )
        SELECT * EXCLUDE (whole), CAST(known_at AS DATE) AS day, {raw},
               row_number() OVER (ORDER BY known_at, {", ".join(f'"{name}"' for name in spec.key)}) - 1 AS {ROW}
        FROM taken ORDER BY {ROW}"""
