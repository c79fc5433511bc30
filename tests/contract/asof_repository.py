"""A Feast repository as anyone would write it, with our offline store, over files with every kind of trouble; and what
Feast's documentation says its answers are, computed row by row."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.s3_storage import arrow_filesystem, storage_options

BASE = datetime(2013, 3, 9, 22, tzinfo=UTC)  # the night New York's clocks change
MINUTES = 4 * 24 * 60
CARRIERS, PLACES = ["AA", "UA", None], ["EWR", "JFK", None]
DECLARED = """
project: plain
provider: local
registry: registry.db
online_store: {{type: sqlite, path: online.db}}
offline_store:
  type: pipelines.adapters.feast_asof.AsofOfflineStore
  memory_limit: 1GB
  temp_directory: {folder}/spill
  threads: 2
entity_key_serialization_version: 3
"""


class Known(NamedTuple):
    """One view as the oracle knows it: rows of keys, minute, minute of creation and value; its TTL in minutes."""

    rows: list[tuple[tuple[str | None, ...], int | None, int | None, float]]
    ttl: int | None
    created: bool

    def answer(self, keys: tuple[str | None, ...], minute: int | None, *, cutoff: bool) -> float | None:
        """The newest row of the keys at or before the minute, of equal ones the one created last; none when expired."""
        if minute is None or None in keys:
            return None
        seen = [
            (at, -1 if created is None else created, value)
            for of, at, created, value in self.rows
            if of == keys
            and at is not None
            and at <= minute
            and (not self.ttl or at >= minute - self.ttl)
            and (not (cutoff and self.created) or (created is not None and created <= minute))
        ]
        return max(seen)[2] if seen else None


def moment(minute: int | None) -> datetime | None:
    return None if minute is None else BASE + timedelta(minutes=minute)


def _rows(seed: int, keys: Sequence[tuple[str | None, ...]]) -> list[tuple[Any, ...]]:
    """Rows with null keys and times, many of equal time, some without creation; none alike in all three."""
    random_ = random.Random(seed)
    made: dict[tuple[Any, ...], float] = {}
    for number in range(150):
        at = random_.choice([None, *range(0, MINUTES, 45)])
        created = random_.choice([None, (at or 0) + random_.choice([-30, 0, 0, 300, 3000])])
        made.setdefault((random_.choice(keys), at, created), float(number))
    return [(*row, value) for row, value in made.items()]


def _table(
    rows: Sequence[tuple[Any, ...]], keys: Sequence[str], names: Mapping[str, str], kind: pa.DataType
) -> pa.Table:
    def times(at: int) -> pa.Array:
        stamps = [moment(row[at]) for row in rows]
        naive = kind.tz is None
        return pa.array([None if s is None else s.replace(tzinfo=None) if naive else s for s in stamps], kind)

    columns = {key: pa.array([row[0][index] for row in rows], pa.string()) for index, key in enumerate(keys)}
    columns |= {names["at"]: times(1)}
    if "created" in names:
        columns |= {names["created"]: times(2)}
    return pa.table(columns | {names["value"]: pa.array([row[3] for row in rows]), "unused": pa.array([1] * len(rows))})


def make(folder: Path, place: str, endpoint: str = "") -> tuple[Any, dict[str, Known]]:
    """The repository in `folder` with its files at `place` (a path or an S3 URI); and what its views hold."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
    from feast.data_format import DeltaFormat
    from feast.on_demand_feature_view import on_demand_feature_view
    from feast.types import Float64, String

    carriers = Known(_rows(1, [(key,) for key in CARRIERS]), 30 * 60, created=True)
    routes = Known(_rows(2, [(origin, dest) for origin in PLACES for dest in PLACES]), 0, created=True)
    season = Known(_rows(3, [()]), None, created=False)
    # Without a creation time, rows of one time have no order: the season has one row a time.
    season = season._replace(rows=list({row[1]: (row[0], row[1], None, row[3]) for row in season.rows}.values()))
    files = {
        "carriers.parquet": _table(
            carriers.rows, ["carrier"], {"at": "stamp", "created": "made", "value": "rate_raw"}, pa.timestamp("ns")
        ),
        "season.parquet": _table(
            season.rows, [], {"at": "stamp", "value": "cold"}, pa.timestamp("us", "America/New_York")
        ),
    }
    for name, table in files.items():
        if endpoint:
            filesystem, inner = arrow_filesystem(f"{place}/{name}", endpoint)
            pq.write_table(table, inner, filesystem=filesystem)
        else:
            pq.write_table(table, f"{place}/{name}")
    lake = DeltaLake(place, storage_options(endpoint) if endpoint else None)
    names = {"at": "event_timestamp", "created": "created", "value": "share"}
    lake.append("routes", _table(routes.rows, ["origin", "dest"], names, pa.timestamp("us", "UTC")))

    (folder / "feature_store.yaml").write_text(DECLARED.format(folder=folder))
    store = FeatureStore(repo_path=str(folder))
    entities = {
        key: Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in ("carrier", "origin", "dest")
    }
    at = {"s3_endpoint_override": endpoint} if endpoint else {}
    views = {
        "carriers": FeatureView(
            name="carriers",
            entities=[entities["carrier"]],
            schema=[Field(name="carrier", dtype=String), Field(name="rate", dtype=Float64)],
            source=FileSource(
                name="carriers",
                path=f"{place}/carriers.parquet",
                timestamp_field="stamp",
                created_timestamp_column="made",
                field_mapping={"rate_raw": "rate"},
                **at,
            ),
            ttl=timedelta(days=1, hours=6),
        ),
        "routes": FeatureView(
            name="routes",
            entities=[entities["origin"], entities["dest"]],
            schema=[Field(name=n, dtype=t) for n, t in {"origin": String, "dest": String, "share": Float64}.items()],
            source=FileSource(
                name="routes",
                path=f"{place}/routes",
                file_format=DeltaFormat(),
                timestamp_field="event_timestamp",
                created_timestamp_column="created",
                **at,
            ),
            ttl=timedelta(0),
        ),
        "season": FeatureView(
            name="season",
            entities=[],
            schema=[Field(name="cold", dtype=Float64)],
            source=FileSource(name="season", path=f"{place}/season.parquet", timestamp_field="stamp", **at),
            ttl=None,
        ),
    }

    @on_demand_feature_view(
        sources=[views["carriers"], RequestSource(name="asked", schema=[Field(name="extra", dtype=Float64)])],
        schema=[Field(name="rate_and_extra", dtype=Float64)],
    )
    def summed(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"rate_and_extra": inputs["rate"] + inputs["extra"]})

    store.apply([*entities.values(), *views.values(), summed])
    return store, {"carriers": carriers, "routes": routes, "season": season}
