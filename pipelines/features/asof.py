"""The point-in-time join: for every row of an entity frame, the newest feature row of its keys at or before its time.

DuckDB's ASOF join does the work; what is here are Feast's rules around it: of rows with equal keys and time the one
created last counts, a row older than the view's time to live counts as missing (both edges inclusive), null keys and
null times match nothing, and every entity row comes back once, in its place. Naive times are UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import msgspec
import pyarrow as pa

from pipelines.contracts.errors import ContractError

STAMP_SUFFIX = "__event_timestamp"
ROW = "__row"
_ENTITY = "__entity"
# A moment in microseconds as a constant of the column's own type: a comparison of the bare column prunes row groups.
_MOMENTS = {
    "TIMESTAMP WITH TIME ZONE": "make_timestamptz({})",
    "TIMESTAMP": "make_timestamp({})",
    "TIMESTAMP_NS": "make_timestamp_ns({} * 1000)",
}


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

    created_cutoff: only feature rows created at or before the entity row's time count; a view that does not say when
    its rows were created (`created` is None) is not cut.
    Raises ContractError when the entity frame lacks a key or its time, or has a column of a feature's name.
    """
    connection.register("__frame", numbered(entity, timestamp, joins))
    # A table, because DuckDB cannot tell how long a registered frame is, and joins one it takes for short row by row.
    connection.execute(
        f'CREATE OR REPLACE TEMP TABLE {_ENTITY} AS SELECT *, epoch_us("{timestamp}") AS __stamp FROM __frame'
    )
    connection.unregister("__frame")
    low, high = connection.execute(f"SELECT min(__stamp), max(__stamp) FROM {_ENTITY}").fetchall()[0]
    entity_kinds = _types(connection, _ENTITY)
    answer = entity
    for one in joins:
        kinds = _types(connection, one.relation)
        rows = _rows(one, kinds[one.timestamp], low, high)
        cut = created_cutoff and one.created is not None
        ties = cut or (not one.unique and _has_ties(connection, rows, one))
        found = connection.execute(
            f"SELECT {_answer(one, 'f')} FROM {_ENTITY} e "
            f"{_join(one, rows, 'f', _asked(one, entity_kinds, kinds), cut=cut, ties=ties)} ORDER BY e.__row"
        ).fetch_arrow_table()
        for name in found.column_names:
            answer = answer.append_column(found.schema.field(name), found.column(name))
    return answer


def numbered(entity: pa.Table, timestamp: str, joins: Sequence[ViewJoin]) -> pa.Table:
    """What the joins need of an entity frame, each row with its number in `ROW`.

    Raises ContractError when the frame lacks a key or its time, or has a column of a feature's name.
    """
    wanted = {timestamp, *(column for one in joins for column in one.keys.values())}
    if missing := sorted(wanted - set(entity.column_names)):
        raise ContractError(
            f"entity frame lacks column {', '.join(missing)}", got=entity.column_names, expected=sorted(wanted)
        )
    if taken := sorted({name for one in joins for name in one.features.values()} & set(entity.column_names)):
        hint = "Rename the column, or ask for full feature names."
        raise ContractError(
            "entity frame and features share names", got=taken, expected="names of their own", hint=hint
        )
    numbers = pa.array(range(entity.num_rows), pa.int64())
    return entity.select(sorted(wanted)).append_column(ROW, numbers)


def sql(entity: str, timestamp: str, joins: Sequence[ViewJoin], *, created_cutoff: bool = False) -> str:
    """The same join as one DuckDB statement. entity, and each join's `relation`: SQL after `FROM`, unquoted.

    It reads all feature rows, where `join` reads those of the entity frame's times.
    """
    parts = []
    for index, one in enumerate(joins):
        rows = _rows(one, "", None, None, quoted=False)
        cut = created_cutoff and one.created is not None
        asked = [f'e."{column}"' for column in one.keys.values()]
        parts.append(_join(one, rows, f"f{index}", asked, cut=cut, ties=cut or not one.unique))
    answers = "".join(f", {_answer(one, f'f{index}')}" for index, one in enumerate(joins))
    numbered = f'SELECT *, row_number() OVER () AS __row, epoch_us("{timestamp}") AS __stamp FROM {entity}'
    return f"SELECT e.* EXCLUDE (__row, __stamp){answers} FROM ({numbered}) e {' '.join(parts)} ORDER BY e.__row"


def moment(us: int, kind: str) -> str | None:
    """A moment as a constant of a DuckDB type; None for a type that has none."""
    form = _MOMENTS.get(kind)
    return None if form is None else form.format(us)


def within(column: str, kind: str, low: int | None, high: int | None) -> list[str]:
    """Conditions that hold for times in [low, high] (microseconds, UTC) of a column of a DuckDB type."""
    made = []
    for sign, edge in ((">=", low), ("<=", high)):
        if edge is not None:
            constant = moment(edge, kind)
            made.append(f'"{column}" {sign} {constant}' if constant else f'epoch_us("{column}") {sign} {edge}')
    return made


def _types(connection: duckdb.DuckDBPyConnection, relation: str) -> dict[str, str]:
    """DuckDB's types of a relation's columns."""
    return {str(row[0]): str(row[1]) for row in connection.execute(f'DESCRIBE "{relation}"').fetchall()}


def _asked(one: ViewJoin, entity: Mapping[str, str], feature: Mapping[str, str]) -> list[str]:
    """The entity's keys as they are compared: text meets numbers as the feature's type, and what is none matches none.

    A column of nulls has no type of its own, so a frame may bring numbers for a key that is text.
    """
    made = []
    for key, column in one.keys.items():
        differ = (entity[column] == "VARCHAR") != (feature[key] == "VARCHAR") and not entity[column].startswith("ENUM")
        made.append(f'TRY_CAST(e."{column}" AS {feature[key]})' if differ else f'e."{column}"')
    return made


def _rows(one: ViewJoin, kind: str, low: int | None, high: int | None, *, quoted: bool = True) -> str:
    """The feature rows that any entity row may see: keys `__k`, features `__f`, `__ts` and `__created` in us."""
    limits = [f'"{one.timestamp}" IS NOT NULL']
    limits += within(one.timestamp, kind, low - one.ttl_us if low is not None and one.ttl_us else None, high)
    columns = [f'epoch_us("{one.timestamp}") AS __ts']
    columns.append(f'epoch_us("{one.created}") AS __created' if one.created else "NULL::BIGINT AS __created")
    columns += [f'"{column}" AS __k{index}' for index, column in enumerate(one.keys)]
    columns += [f'"{column}" AS __f{index}' for index, column in enumerate(one.features)]
    relation = f'"{one.relation}"' if quoted else one.relation
    return f"SELECT {', '.join(columns)} FROM {relation} WHERE {' AND '.join(limits)}"


def _join(one: ViewJoin, rows: str, name: str, asked: Sequence[str], *, cut: bool, ties: bool) -> str:
    """The ASOF join of `e` with the feature rows, named `name`. asked: the entity's keys."""
    keys = [f"__k{index}" for index in range(len(one.keys))]
    seen = "__ts"
    if cut:
        # A row can be seen from `__at` on, its time and its creation both past. Of what can be seen the greatest
        # (time, creation) counts: rows that something greater precedes never count, and the others are in its order.
        seen = "__at"
        greatest = f"max(row(__ts, __created)) OVER ({_partition(keys)}ORDER BY __at ROWS UNBOUNDED PRECEDING)"
        rows = (
            f"SELECT *, greatest(__ts, __created) AS __at FROM ({rows}) WHERE __created IS NOT NULL "
            f"QUALIFY row_number() OVER ({_partition([*keys, '__at'])}ORDER BY __ts DESC, __created DESC) = 1"
        )
        rows = f"SELECT * FROM ({rows}) QUALIFY row(__ts, __created) = {greatest}"
    elif ties:
        newest = f"row_number() OVER ({_partition([*keys, '__ts'])}ORDER BY __created DESC NULLS LAST) = 1"
        rows = f"SELECT * FROM ({rows}) QUALIFY {newest}"
    same = [f"{column} = {name}.{key}" for key, column in zip(keys, asked, strict=True)]
    return f"ASOF LEFT JOIN ({rows}) {name} ON {' AND '.join([*same, f'e.__stamp >= {name}.{seen}'])}"


def _answer(one: ViewJoin, name: str) -> str:
    """The features of the row found, null when it is past its time to live."""
    alive = f"{name}.__ts IS NOT NULL" + (f" AND {name}.__ts >= e.__stamp - {one.ttl_us}" if one.ttl_us else "")
    picked = [
        f'CASE WHEN {alive} THEN {name}.__f{index} END AS "{feature}"'
        for index, feature in enumerate(one.features.values())
    ]
    if one.stamp_name:
        picked.append(f'make_timestamptz(CASE WHEN {alive} THEN {name}.__ts END) AS "{one.stamp_name}"')
    return ", ".join(picked)


def _partition(columns: Sequence[str]) -> str:
    return f"PARTITION BY {', '.join(columns)} " if columns else ""


def _has_ties(connection: duckdb.DuckDBPyConnection, rows: str, one: ViewJoin) -> bool:
    """Whether any two rows share keys and time; removing ties costs a sort that most views do not need."""
    parts = ", ".join([*(f"__k{index}" for index in range(len(one.keys))), "__ts"])
    query = f"SELECT 1 FROM ({rows}) GROUP BY {parts} HAVING count(*) > 1 LIMIT 1"
    return connection.execute(query).fetchone() is not None
