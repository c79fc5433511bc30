"""What the lake has of a key around a moment: the rows that a logged online read is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

SECOND_US = 1_000_000

FRAME = {"at_us": "when it was asked", "stamp_us": "the stamp of the row that was read, null for none"}
"""Columns of the frame beside the key columns, both bigint microseconds."""


def around(
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    frame: pa.Table,
    keys: Mapping[str, str],
    features: Sequence[str],
    ttl_us: int | None,
) -> pa.Table:
    """For each row of `frame`, in order: `expected_us`, `same_us`, `due_us` (see `parity.Read`), and the features of
    the row with the stamp that was read.

    relation: the view's rows. keys: the frame's column by the relation's key column. A store that keeps whole seconds
    gives stamps cut to them: the lake's row of that second is taken for the same.
    """
    columns = [*keys.values(), *FRAME]
    numbered = frame.select(list(dict.fromkeys(columns))).append_column(
        "__row", pa.array(range(frame.num_rows), pa.int64())
    )
    connection.register("__asked", numbered)
    picked = ", ".join(f'"{name}" AS __f{at}' for at, name in enumerate(features))
    named = ", ".join(f'"{key}" AS __k{at}' for at, key in enumerate(keys))
    key_list = ", ".join(f'"{key}"' for key in keys)
    asked_list = ", ".join(f'"{name}"' for name in keys.values())
    same_key = " AND ".join(f'a."{name}" = {{}}.__k{at}' for at, name in enumerate(keys.values()))
    # The end of the second where the stamp is a whole one; -1 sorts before every row.
    used = f"coalesce(a.stamp_us + CASE WHEN a.stamp_us % {SECOND_US} = 0 THEN {SECOND_US - 1} ELSE 0 END, -1)"
    alive = f"e.__ts >= a.at_us - {ttl_us}" if ttl_us else "true"
    found = f"s.__ts // {SECOND_US} = a.stamp_us // {SECOND_US}"
    values = ", ".join(f'CASE WHEN {found} THEN s.__f{at} END AS "{name}"' for at, name in enumerate(features))
    try:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE __kept AS SELECT {named}, {picked}, epoch_us(event_timestamp) AS __ts "
            f'FROM "{relation}" WHERE ({key_list}) IN (SELECT ({asked_list}) FROM __asked)'
        )
        connection.execute(f"CREATE OR REPLACE TEMP TABLE __asked_rows AS SELECT a.*, {used} AS __used FROM __asked a")
        answer: pa.Table = connection.execute(
            f"SELECT CASE WHEN {alive} THEN e.__ts END AS expected_us, CASE WHEN {found} THEN s.__ts END AS same_us, "
            f"CASE WHEN n.__ts <= a.at_us THEN n.__ts END AS due_us, {values} FROM __asked_rows a "
            f"ASOF LEFT JOIN __kept e ON {same_key.format(*['e'] * len(keys))} AND a.at_us >= e.__ts "
            f"ASOF LEFT JOIN __kept s ON {same_key.format(*['s'] * len(keys))} AND a.__used >= s.__ts "
            f"ASOF LEFT JOIN __kept n ON {same_key.format(*['n'] * len(keys))} AND a.__used < n.__ts "
            "ORDER BY a.__row"
        ).fetch_arrow_table()
        return answer
    finally:
        connection.unregister("__asked")
