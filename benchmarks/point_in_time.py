"""The point-in-time join beside plain DuckDB and Feast's own stores, on the same files in one run.

    .venv/bin/python -m benchmarks.point_in_time          300k rows x 3 views over 1.2M feature rows, and Feast's limits
    .venv/bin/python -m benchmarks.point_in_time long     the same sizes with 1,000 keys in each view: long histories
    .venv/bin/python -m benchmarks.point_in_time big      10M rows x 3 views over 50M feature rows, and the way there

Everything runs in a process of its own, which reports wall and processor seconds and its peak memory; `idle` is that of
a process that has imported the same and done nothing. Ours and Feast's are asked through Feast's SDK. Plain DuckDB is
three ASOF joins in one statement: no time to live, no order, no ties. Feast's stores get ever more entity rows until
they take more than `--seconds` or `--gigabytes`. Feast joins every entity row with all rows of its key that are alive
and takes the newest of those, so what it costs is rows a key; `long` says how much.
In `big` the kernel refuses a process more than `--gigabytes` of data, DuckDB has 4 GB of it, and what it spills is
watched. Files lie in a temporary folder (about 4 GB, and as much spilled).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.feast_repository import plain_store
from benchmarks.provenance import PROJECT, RESULTS, provenance, record

SEED = 7
BEGIN_US, SPAN_US = 1_700_000_000_000_000, 90 * 86_400_000_000
FEATURES = 5
TTL = timedelta(days=30)
CHUNK = 2_000_000
ROWS_PER_KEY = (100, 10, 20)  # of each view
SMALL = {"entity": 300_000, "views": (100_000, 100_000, 1_000_000), "rows_per_key": ROWS_PER_KEY}
LONG = SMALL | {"rows_per_key": (100, 100, 1000)}
BIG = [
    {"entity": size, "views": (size // 2, size // 2, size * 4), "rows_per_key": ROWS_PER_KEY}
    for size in (1_000_000, 3_000_000, 10_000_000)
]
OURS = "pipelines.adapters.feast_asof.AsofOfflineStore"


def columns(view: int) -> list[str]:
    return [f"v{view}_f{number}" for number in range(FEATURES)]


def make(folder: Path, sizes: dict[str, Any]) -> None:
    """Write the views' files and the entity rows."""
    rng = np.random.default_rng(SEED)
    stamp = pa.timestamp("us", "UTC")
    rows_per_key = sizes.get("rows_per_key", ROWS_PER_KEY)
    keys_of = [max(1, rows // per_key) for rows, per_key in zip(sizes["views"], rows_per_key, strict=True)]
    for view, rows in enumerate(sizes["views"]):
        writer = None
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            at = BEGIN_US + rng.integers(0, SPAN_US, count)
            table = pa.table(
                {
                    f"k{view}": rng.integers(0, keys_of[view], count),
                    "event_timestamp": pa.array(at, stamp),
                    "created": pa.array(at + 1000, stamp),
                    **{name: rng.random(count) for name in columns(view)},
                }
            )
            writer = writer or pq.ParquetWriter(folder / f"v{view}.parquet", table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()
    count = sizes["entity"]
    keys = {f"k{view}": rng.integers(0, there, count) for view, there in enumerate(keys_of)}
    at = pa.array(BEGIN_US + rng.integers(0, SPAN_US, count), stamp)
    pq.write_table(pa.table({**keys, "event_timestamp": at}), folder / "entity.parquet")


# --- in a process of its own ----------------------------------------------------------------------------------------


def feast_store(folder: Path, offline: dict[str, Any]) -> tuple[Any, list[str]]:
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    scratch = Path(tempfile.mkdtemp(dir=folder))
    store = plain_store(scratch, {"type": "sqlite", "path": str(scratch / "online.db")}, offline)
    made: list[Any] = []
    for view in range(3):
        key = Entity(name=f"k{view}", join_keys=[f"k{view}"], value_type=ValueType.INT64)
        fields = [Field(name=f"k{view}", dtype=Int64), *(Field(name=name, dtype=Float64) for name in columns(view))]
        source = FileSource(
            name=f"s{view}",
            path=str(folder / f"v{view}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        made += [key, FeatureView(name=f"v{view}", entities=[key], schema=fields, source=source, ttl=TTL)]
    store.apply(made)
    return store, [f"v{view}:{name}" for view in range(3) for name in columns(view)]


def plain(folder: Path, rows: int) -> pa.Table:
    import duckdb

    joins = " ".join(
        f"ASOF LEFT JOIN read_parquet('{folder}/v{view}.parquet') v{view} "
        f"ON e.k{view} = v{view}.k{view} AND e.event_timestamp >= v{view}.event_timestamp"
        for view in range(3)
    )
    names = ", ".join(name for view in range(3) for name in columns(view))
    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE e AS FROM read_parquet('{folder}/entity.parquet') LIMIT {rows}")
        return connection.execute(f"SELECT e.*, {names} FROM e {joins}").fetch_arrow_table()


def child(kind: str, folder: Path, rows: int, memory: str, gigabytes: float) -> None:
    """One measurement; its result is the last line printed. The second of two small runs counts: the first warms up.

    memory: what DuckDB may hold; given, the whole process may hold `gigabytes` of data and no more.
    """
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9), int(gigabytes * 1e9)))
    offline = {"ours": {"type": OURS}, "duckdb": {"type": "duckdb"}, "file": {"type": "file"}}
    if memory:
        offline["ours"] |= {"memory_limit": memory, "temp_directory": str(folder / "spill")}
    store, refs = feast_store(folder, offline.get(kind, {"type": OURS}))
    entity = pq.read_table(folder / "entity.parquet").slice(0, rows)
    sql = f"SELECT * FROM '{folder}/entity.parquet' LIMIT {rows}"
    frame = entity.to_pandas() if kind in ("duckdb", "file") or (kind == "ours" and not memory) else None
    del entity
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {}
    for _ in range(2 if rows <= 300_000 and kind in ("ours", "plain") else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        if kind == "plain":
            answer = plain(folder, rows)
        else:
            asked = sql if frame is None else frame
            job = store.get_historical_features(asked, refs)
            answer = job.to_df() if kind in ("duckdb", "file") else job.to_arrow()
        found = {"wall_s": round(time.perf_counter() - wall, 3), "cpu_s": round(time.process_time() - cpu, 3)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held = len(answer)
    print(json.dumps(found | {"rows": held, "peak_gb": round(peak / 1e6, 2), "idle_gb": round(idle / 1e6, 2)}))


# --- the run --------------------------------------------------------------------------------------------------------


def run(kind: str, folder: Path, rows: int, seconds: float, gigabytes: float, memory: str = "") -> dict[str, Any]:
    """A measurement, or what ended it."""
    given = [kind, str(folder), str(rows), memory, str(gigabytes)]
    command = [sys.executable, "-m", "benchmarks.point_in_time", "child", *given]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=subprocess.DEVNULL)
        watched, began, peak, spilled = psutil.Process(process.pid), time.monotonic(), 0, 0
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            spilled = max(spilled, _size(folder / "spill"))
            took = time.monotonic() - began
            if took > seconds or peak > gigabytes * 1e9:
                process.kill()
                process.wait()
                why = f"more than {seconds:.0f} s" if took > seconds else f"more than {gigabytes:.0f} GB"
                return {"rows": rows, "ended_by": why, "peak_gb": round(peak / 1e9, 2), "wall_s": round(took, 1)}
            time.sleep(0.05)  # how often memory is looked at
        output.seek(0)
        told = output.read().splitlines()
    if process.wait() != 0:
        return {"rows": rows, "ended_by": f"exit {process.returncode}", "peak_gb": round(peak / 1e9, 2)}
    return json.loads(told[-1]) | ({"spilled_gb": round(spilled / 1e9, 2)} if memory else {})


def _size(folder: Path) -> int:
    """Bytes in the files of a folder; files may go while they are looked at."""
    total = 0
    for path in folder.glob("**/*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def show(name: str, found: dict[str, Any]) -> None:
    if "ended_by" in found:
        print(
            f"  {name:22} {found['rows']:>10,} rows   ended by {found['ended_by']} (peak {found['peak_gb']} GB)",
            flush=True,
        )
        return
    print(
        f"  {name:22} {found['rows']:>10,} rows {found['wall_s']:8.2f} s wall {found['cpu_s']:8.2f} s processor "
        f"{found['wall_s'] / found['rows'] * 1e6:8.2f} us/row   peak {found['peak_gb']:5.2f} GB"
        + (f", spilled {found['spilled_gb']:.2f} GB" if "spilled_gb" in found else ""),
        flush=True,
    )


def beside_feast(folder: Path, sizes: dict[str, Any], seconds: float, gigabytes: float) -> dict[str, Any]:
    make(folder, sizes)
    rows = sizes["entity"]
    print(f"{rows:,} entity rows x 3 views over {sum(sizes['views']):,} feature rows, {sizes['rows_per_key']} a key")
    found: dict[str, Any] = {"sizes": sizes}
    for kind in ("plain", "ours"):
        found[kind] = min(
            (run(kind, folder, rows, seconds, gigabytes) for _ in range(3)), key=lambda one: one["wall_s"]
        )
        show({"plain": "plain DuckDB ASOF", "ours": "AsofOfflineStore"}[kind], found[kind])
    for kind in ("duckdb", "file"):
        found[kind] = []
        for size in (3_000, 10_000, 30_000, 100_000, 300_000):
            one = run(kind, folder, size, seconds, gigabytes)
            show(f"Feast's {kind} store", one)
            found[kind].append(one)
            if "ended_by" in one:
                break
        finished = [one for one in found[kind] if "ended_by" not in one]
        if finished:
            ours = run("ours", folder, finished[-1]["rows"], 10 * seconds, gigabytes)
            show("  ours, as many rows", ours)
            found[f"ours_at_{kind}"] = ours
            if "ended_by" in ours:
                continue
            found[f"times_faster_than_{kind}"] = {
                of: round(finished[-1][of] / ours[of], 1) for of in ("wall_s", "cpu_s")
            }
            print(f"  faster than Feast's {kind} store: {found[f'times_faster_than_{kind}']}")
    found["over_plain"] = {of: round(found["ours"][of] / found["plain"][of], 2) for of in ("wall_s", "cpu_s")}
    print(f"  over plain ASOF: {found['over_plain']}")
    return found


def big(folder: Path, seconds: float, gigabytes: float) -> dict[str, Any]:
    found: dict[str, Any] = {"limit_gb": gigabytes, "duckdb_limit_gb": 4, "runs": []}
    for sizes in BIG:
        make(folder, sizes)
        print(f"{sizes['entity']:,} entity rows x 3 views over {sum(sizes['views']):,} feature rows")
        one = run("ours", folder, sizes["entity"], seconds, gigabytes, memory="4GB")
        show("AsofOfflineStore", one)
        found["runs"].append({"feature_rows": sum(sizes["views"])} | one)
        for path in folder.glob("*.parquet"):
            path.unlink()
    first, last = found["runs"][0], found["runs"][-1]
    if "ended_by" not in last:
        found["per_row_growth"] = round(last["cpu_s"] / last["rows"] / (first["cpu_s"] / first["rows"]), 2)
        print(f"  processor time a row, largest over smallest: {found['per_row_growth']}")
    return found


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        _, _, kind, folder, rows, memory, gigabytes = sys.argv
        child(kind, Path(folder), int(rows), memory, float(gigabytes))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="small", choices=["small", "long", "big"])
    parser.add_argument("--seconds", type=float, help="when a run is ended; 60, and 1,200 for `big`")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="of memory at which a run is ended")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    began = provenance() | {"seed": SEED}
    seconds = given.seconds or (1200.0 if given.what == "big" else 60.0)
    with tempfile.TemporaryDirectory(prefix="slipway-point-in-time-") as scratch:
        folder = Path(scratch)
        if given.what == "big":
            found = big(folder, seconds, given.gigabytes)
        else:
            found = beside_feast(folder, SMALL if given.what == "small" else LONG, seconds, given.gigabytes)
    name = "point_in_time.json" if given.what == "small" else f"point_in_time_{given.what}.json"
    record(given.out or RESULTS / name, began | found)


if __name__ == "__main__":
    main()
