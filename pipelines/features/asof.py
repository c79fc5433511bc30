"""The point-in-time join: for every row of an entity frame, the newest feature row of its keys at or before its time.

DuckDB's ASOF join does the work; what is here are Feast's rules around it: of rows with equal keys and time the one
created last counts, a row older than the view's time to live counts as missing (both edges inclusive), null keys and
null times match nothing, and every entity row comes back once, in its place. Naive times are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import msgspec
import pyarrow as pa

from pipelines.contracts.errors import ContractError

STAMP_SUFFIX = "__event_timestamp"
ROW = "__row"


class ViewJoin(msgspec.Struct, frozen=True, kw_only=True):
    """One view to be joined. `relation` is a view or table of the DuckDB connection.

    keys: entity frame's column by the relation's key column; empty for features of no entity.
    features: column in the answer by the relation's column. ttl_us: None or 0 for no limit.
    stamp_name: when given, the answer has the feature row's own time under this name (timestamp us UTC).
    unique: no two rows share keys and time, and nobody needs to look.
    """

    relation: str
    keys: dict[str, str]
    features: dict[str, str]
    timestamp: str = "event_timestamp"
    created: str | None = "created_timestamp"
    ttl_us: int | None = None
    stamp_name: str | None = None
    unique: bool = False


def join(
    connection: duckdb.DuckDBPyConnection,
    entity: pa.Table,
    timestamp: str,
    joins: Sequence[ViewJoin],
    *,
    created_cutoff: bool = False,
) -> pa.Table:
    """The entity frame as it came, with the features of every join behind it.

    created_cutoff: only feature rows created at or before the entity row's time count.
    Raises ContractError when the entity frame lacks a key or its time.
    """
    narrow = numbered(entity, timestamp, joins)
    connection.register("__frame", narrow)
    connection.execute(
        f'CREATE OR REPLACE TEMP TABLE __entity AS SELECT *, epoch_us("{timestamp}") AS __stamp FROM __frame'
    )
    connection.unregister("__frame")
    low, high = connection.execute("SELECT min(__stamp), max(__stamp) FROM __entity").fetchall()[0]
    answer = entity
    for one in joins:
        found = connection.execute(
            _query(connection, one, low, high, created_cutoff=created_cutoff)
        ).fetch_arrow_table()
        for name in found.column_names:
            answer = answer.append_column(found.schema.field(name), found.column(name))
    return answer


def numbered(entity: pa.Table, timestamp: str, joins: Sequence[ViewJoin]) -> pa.Table:
    """What the joins need of an entity frame, each row with its number in `ROW`.

    Raises ContractError when the frame lacks a key or its time.
    """
    wanted = {timestamp, *(column for one in joins for column in one.keys.values())}
    if missing := sorted(wanted - set(entity.column_names)):
        raise ContractError(
            f"entity frame lacks column {', '.join(missing)}", got=entity.column_names, expected=sorted(wanted)
        )
    numbers = pa.array(range(entity.num_rows), pa.int64())
    return entity.select(sorted(wanted)).append_column(ROW, numbers)


def _query(
    connection: duckdb.DuckDBPyConnection, one: ViewJoin, low: int | None, high: int | None, *, created_cutoff: bool
) -> str:
    stamp = f'epoch_us("{one.timestamp}")'
    created = f'epoch_us("{one.created}")' if one.created else "NULL::BIGINT"
    ttl = one.ttl_us or None
    limits = [f"{stamp} IS NOT NULL"]
    if high is not None:
        limits.append(f"{stamp} <= {high}")
    if low is not None and ttl is not None:
        limits.append(f"{stamp} >= {low - ttl}")
    keys = {column: f"__k{index}" for index, column in enumerate(one.keys)}
    columns = [f'"{column}" AS {alias}' for column, alias in keys.items()]
    columns += [f'"{column}" AS __f{index}' for index, column in enumerate(one.features)]
    rows = (
        f'SELECT {stamp} AS __ts, {created} AS __created{"".join(", " + c for c in columns)} FROM "{one.relation}" '
        f"WHERE {' AND '.join(limits)}"
    )
    same_key = [f'e."{one.keys[column]}" = f.{alias}' for column, alias in keys.items()]
    alive = "f.__ts IS NOT NULL" + (f" AND f.__ts >= e.__stamp - {ttl}" if ttl is not None else "")
    names = list(one.features.values())
    if created_cutoff:
        picked = ", ".join(f'__best.__f{index} AS "{name}"' for index, name in enumerate(names))
        stamped = _stamp("__best.__ts", one.stamp_name)
        condition = " AND ".join([*same_key, "f.__ts <= e.__stamp", "f.__created <= e.__stamp", alive])
        return (
            f"SELECT {', '.join(filter(None, [picked, stamped]))} "
            "FROM (SELECT e.__row, arg_max(f, (f.__ts, f.__created)) "
            f"AS __best FROM __entity e LEFT JOIN ({rows}) f ON {condition} GROUP BY e.__row) ORDER BY __row"
        )
    if not one.unique and _has_ties(connection, rows, list(keys.values())):
        parts = ", ".join([*keys.values(), "__ts"])
        newest = f"row_number() OVER (PARTITION BY {parts} ORDER BY __created DESC NULLS LAST) = 1"
        rows = f"SELECT * FROM ({rows}) QUALIFY {newest}"
    picked = ", ".join(f'CASE WHEN {alive} THEN f.__f{index} END AS "{name}"' for index, name in enumerate(names))
    stamped = _stamp(f"CASE WHEN {alive} THEN f.__ts END", one.stamp_name)
    condition = " AND ".join([*same_key, "e.__stamp >= f.__ts"])
    return (
        f"SELECT {', '.join(filter(None, [picked, stamped]))} FROM __entity e ASOF LEFT JOIN ({rows}) f ON {condition} "
        "ORDER BY e.__row"
    )


def _stamp(value: str, name: str | None) -> str:
    return f'make_timestamptz({value}) AS "{name}"' if name else ""


def _has_ties(connection: duckdb.DuckDBPyConnection, rows: str, keys: list[str]) -> bool:
    """Whether any two rows share keys and time; removing ties costs a sort that most views do not need."""
    parts = ", ".join([*keys, "__ts"])
    query = f"SELECT 1 FROM ({rows}) GROUP BY {parts} HAVING count(*) > 1 LIMIT 1"
    return connection.execute(query).fetchone() is not None
