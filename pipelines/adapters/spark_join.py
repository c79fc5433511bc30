"""The point-in-time join on Spark: the rules of `pipelines.features.asof`, which says what they are.

Feature rows and entity rows of a view are put together, and for each key read in the order in which they become
visible; every entity row gets the newest feature row seen so far. Each row is moved and read once, however many rows a
key has and however unevenly they lie: a join on key and time would pair each entity row with all of its key's past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.features import asof
from pipelines.features.asof import ViewJoin

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def join(
    session: SparkSession,
    entity: pa.Table,
    timestamp: str,
    joins: Sequence[ViewJoin],
    relations: Mapping[str, DataFrame],
    *,
    created_cutoff: bool = False,
) -> pa.Table:
    """The entity frame as it came, with the features of every join behind it.

    relations: the rows of each join's `relation`. created_cutoff: only feature rows created at or before the entity
    row's time count. Raises ContractError when the entity frame lacks a key or its time.
    """
    narrow = asof.numbered(entity, timestamp, joins)
    if not entity.num_rows:
        return _with_columns(entity, joins, relations)
    session.createDataFrame(narrow).createOrReplaceTempView("__frame")
    answer = entity
    for one in joins:
        relations[one.relation].createOrReplaceTempView("__features")
        found = (
            session.sql(_query(one, timestamp, created_cutoff=created_cutoff and one.created is not None))
            .toArrow()
            .sort_by(asof.ROW)
        )
        for name in found.column_names:
            if name != asof.ROW:
                answer = answer.append_column(found.schema.field(name), found.column(name))
    return answer


def _query(one: ViewJoin, timestamp: str, *, created_cutoff: bool) -> str:
    keys = {column: f"__k{index}" for index, column in enumerate(one.keys)}
    features = list(one.features)
    stamp = f"unix_micros(CAST(`{one.timestamp}` AS TIMESTAMP))"
    created = f"unix_micros(CAST(`{one.created}` AS TIMESTAMP))" if one.created else "CAST(NULL AS BIGINT)"
    # Of a key's visible rows the greatest counts: newest, then created last. Values only break what is left.
    held = ", ".join([f"{stamp} AS ts", f"{created} AS created", *_aliased(features)])
    visible = f"greatest({stamp}, {created})" if created_cutoff else stamp
    there = [f"`{column}` IS NOT NULL" for column in [one.timestamp, *keys]]
    if created_cutoff:
        there.append(f"{created} IS NOT NULL")
    rows = (
        f"SELECT {_selected(keys)}{visible} AS __at, 0 AS __kind, CAST(NULL AS BIGINT) AS {asof.ROW}, "
        f"struct({held}) AS __held FROM __features WHERE {' AND '.join(there)}"
    )
    mapped = {one.keys[column]: alias for column, alias in keys.items()}
    asked = (
        f"SELECT {_selected(mapped)}unix_micros(CAST(`{timestamp}` AS TIMESTAMP)) AS __at, 1 AS __kind, {asof.ROW}, "
        "NULL AS __held FROM __frame"
    )
    by = f"PARTITION BY {', '.join(keys.values())} " if keys else ""
    window = f"({by}ORDER BY __at, __kind ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)"
    # Null keys share a partition with no feature row; null times come before all of them.
    best = f"SELECT {asof.ROW}, __kind, __at, max(__held) OVER {window} AS best FROM ({rows} UNION ALL {asked})"
    alive = f"best.ts >= __at - {one.ttl_us}" if one.ttl_us else "true"
    picked = [f"CASE WHEN {alive} THEN best.f{i} END AS `{name}`" for i, name in enumerate(one.features.values())]
    if one.stamp_name:
        picked.append(f"timestamp_micros(CASE WHEN {alive} THEN best.ts END) AS `{one.stamp_name}`")
    return f"SELECT {', '.join([asof.ROW, *picked])} FROM ({best}) WHERE __kind = 1"


def _selected(columns: Mapping[str, str]) -> str:
    return "".join(f"`{column}` AS {alias}, " for column, alias in columns.items())


def _aliased(features: Sequence[str]) -> list[str]:
    return [f"`{name}` AS f{index}" for index, name in enumerate(features)]


def _with_columns(entity: pa.Table, joins: Sequence[ViewJoin], relations: Mapping[str, DataFrame]) -> pa.Table:
    """An empty entity frame, with the columns that the joins would give it."""
    for one in joins:
        rows = relations[one.relation].limit(0).toArrow()
        for column, name in one.features.items():
            entity = entity.append_column(name, pa.nulls(0, rows.schema.field(column).type))
        if one.stamp_name:
            entity = entity.append_column(one.stamp_name, pa.nulls(0, pa.timestamp("us", tz="UTC")))
    return entity
