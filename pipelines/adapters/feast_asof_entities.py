"""The entity rows of a question to `AsofOfflineStore`: a frame, DuckDB SQL, or every row of a span of time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df

from pipelines.adapters.delta_lake import connect
from pipelines.contracts.clocks import to_us
from pipelines.contracts.errors import ContractError
from pipelines.features import asof

EVENT_TIMESTAMP = "event_timestamp"


def entity_frame(entity: pd.DataFrame | str | None) -> tuple[pa.Table | None, str]:
    """The frame as it came, its times as times (Feast allows them as text, too), and the column of its times.

    SQL is looked at, not run: its frame is None. So is that of no entity at all.
    """
    if entity is None:
        return None, EVENT_TIMESTAMP
    if isinstance(entity, str):
        with connect() as connection:
            described = connection.execute(f"DESCRIBE ({entity})").fetchall()
        stamp = np.dtype("datetime64[us]")
        kinds = {name: stamp if kind.startswith("TIMESTAMP") else np.dtype("O") for name, kind, *_ in described}
        return None, str(infer_event_timestamp_from_entity_df(kinds))
    timestamp = str(infer_event_timestamp_from_entity_df({str(name): kind for name, kind in entity.dtypes.items()}))
    if not pd.api.types.is_datetime64_any_dtype(entity[timestamp].dtype):
        entity = entity.assign(**{timestamp: pd.to_datetime(entity[timestamp], utc=True)})
    return pa.Table.from_pandas(entity, preserve_index=False), timestamp


def in_order(connection: duckdb.DuckDBPyConnection, query: str) -> pa.Table:
    """The rows of a query in its own order."""
    connection.execute("SET preserve_insertion_order=true")
    rows = connection.execute(query).fetch_arrow_table()
    connection.execute("SET preserve_insertion_order=false")
    return rows


def spine(joins: Sequence[asof.ViewJoin], span: tuple[datetime, datetime]) -> str:
    """Entity rows when none are given: every key and time at which any of the views has a row in the span."""
    keys = sorted(joins[0].keys.values())
    if any(sorted(one.keys.values()) != keys for one in joins):
        raise ContractError(
            "views asked for without an entity frame",
            got=[sorted(one.keys.values()) for one in joins],
            expected="the same join keys",
            hint="Give an entity frame, or ask for the views one by one.",
        )
    parts = []
    for one in joins:
        stamp = f'epoch_us("{one.timestamp}")'
        columns = [f'"{column}" AS "{name}"' for column, name in sorted(one.keys.items(), key=lambda item: item[1])]
        columns.append(f"make_timestamptz({stamp}) AS {EVENT_TIMESTAMP}")
        span_us = f"{to_us(span[0])} AND {to_us(span[1])}"
        parts.append(f"SELECT {', '.join(columns)} FROM {one.relation} WHERE {stamp} BETWEEN {span_us}")
    order = ", ".join([*(f'"{key}"' for key in keys), EVENT_TIMESTAMP])
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {order}"
