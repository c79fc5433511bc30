"""The training set: past requests with their labels as known at one moment, write-once, named by its content.

    training_sets/<digest>/data.parquet    request_id, event_timestamp, inputs, `<view>.<feature>`, label,
                                           label_timestamp
                           manifest.json   what it was made of and why rows are missing; its SHA-256 is the digest
                           erased.json     when rows were blanked since (`blanking.py`): which file counts now

Only labels with `label_timestamp <= as_of` count. A request without one is either too young (its label may still come)
or unlabelled for good; the spec says whether the latter are dropped or kept as censored (label null, never fitted on).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from pipelines.contracts.canonical import canonical_json, file_digest
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError, DataError, NotFoundError

SCHEMA = "slipway-training-set/1"
MICROS_UTC = pa.timestamp("us", tz="UTC")
ERASED = "erased.json"
KEYS = ("request_id", "event_timestamp")
TRUTH = ("label", "label_timestamp")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a training set was made of. Times are microseconds; `views` has {view, features} in the spec's order."""

    schema: str = SCHEMA
    model: str
    spec_digest: str
    as_of_us: int
    from_us: int | None
    views: list[dict[str, Any]]
    rows: int
    labelled: int
    censored: int
    dropped: dict[str, int]
    first_event_us: int
    last_event_us: int
    last_label_us: int
    data: str


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """A training set of which rows were blanked: the file that counts, its SHA-256, and blanked rows by erasure."""

    file: str
    digest: str
    rows: dict[str, int]


class Joined(NamedTuple):
    """Requests with their labels (null where censored), in the order of (event_timestamp, request_id)."""

    table: pa.Table
    dropped: dict[str, int]


def join_labels(
    requests: pa.Table,
    labels: pa.Table,
    *,
    as_of_us: int,
    from_us_: int | None,
    maturity_us: int,
    unlabelled: str,
) -> Joined:
    """Give each request of the window its label as known at `as_of_us`. Of several labels the last known one counts.

    Raises DataError for a request id that occurs twice, a NaN label, or a window without one labelled request.
    """
    import duckdb

    _check_columns("requests", requests, KEYS)
    _check_columns("labels", labels, ("request_id", *TRUTH))
    con = duckdb.connect()
    con.execute("SET TimeZone='UTC'")
    con.register("requests", requests)
    con.register("labels", labels)
    as_of = from_us(as_of_us)
    nan = con.execute("SELECT count(*), min(request_id) FROM labels WHERE isnan(label)").fetchone()
    if nan is not None and nan[0]:
        raise DataError(
            "labels",
            got=f"NaN for {nan[0]} requests, first {nan[1]}",
            expected="a number, or no row",
            hint="Mend the labels transform.",
        )
    con.execute("CREATE TABLE asked AS SELECT * FROM requests WHERE event_timestamp <= ?", [as_of])
    if from_us_ is not None:
        con.execute("DELETE FROM asked WHERE event_timestamp < ?", [from_us(from_us_)])
    twice = con.execute("SELECT request_id FROM asked GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 1").fetchone()
    if twice is not None:
        raise DataError("requests", got=f"request_id {twice[0]} twice", expected="one row a request")
    con.execute(
        """CREATE TABLE joined AS
           SELECT w.*, l.label::DOUBLE AS label, l.label_timestamp FROM asked w LEFT JOIN (
               SELECT request_id, arg_max(label, label_timestamp) AS label, max(label_timestamp) AS label_timestamp
               FROM labels WHERE label IS NOT NULL AND label_timestamp <= ? GROUP BY 1) l USING (request_id)""",
        [as_of],
    )
    young_from = from_us(as_of_us - maturity_us)
    young, never = con.execute(
        """SELECT count(*) FILTER (event_timestamp > $1), count(*) FILTER (event_timestamp <= $1)
           FROM joined WHERE label IS NULL""",
        [young_from],
    ).fetchone() or (0, 0)
    dropped = {"label_not_known_yet": young, "unlabelled": 0 if unlabelled == "censor" else never}
    keep = "label IS NOT NULL" if unlabelled == "drop" else "label IS NOT NULL OR event_timestamp <= $1"
    table = con.execute(
        f"SELECT * FROM joined WHERE {keep} ORDER BY event_timestamp, request_id",
        [young_from] if unlabelled == "censor" else None,
    ).fetch_arrow_table()
    if table.num_rows == table.column("label").null_count:
        raise DataError(
            "training set",
            got=f"no labelled request up to {as_of.isoformat()}",
            expected="labelled requests",
            hint="Are the datasets of requests and labels published up to that moment?",
        )
    return Joined(_microseconds(table), dropped)


def write(root: Path, table: pa.Table, manifest: Manifest) -> str:
    """Write the folder once (staged, then renamed) and return its digest. `manifest.data` is filled in here."""
    import pyarrow.parquet as pq

    root.mkdir(parents=True, exist_ok=True)
    staged = root / f".staged-{os.getpid()}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    pq.write_table(table, staged / "data.parquet", compression="zstd", coerce_timestamps="us")
    full = msgspec.structs.replace(manifest, data=file_digest(staged / "data.parquet"))
    (staged / "manifest.json").write_bytes(canonical_json(msgspec.to_builtins(full)))
    name = file_digest(staged / "manifest.json")
    try:
        staged.rename(root / name)
    except OSError:
        if not (root / name / "manifest.json").is_file():
            raise
        shutil.rmtree(staged)  # the same content lies there already
    return name


def manifest_of(root: Path, digest: str) -> Manifest:
    """The manifest of a training set. Raises NotFoundError, or ContractError when it was changed after its making."""
    path = root / digest / "manifest.json"
    if not path.is_file():
        raise NotFoundError("training set", got=digest[:12], expected=f"a folder in {root}")
    if (got := file_digest(path)) != digest:
        raise ContractError(f"{path}", got=got[:12], expected=digest[:12], hint="Training sets are write-once.")
    return msgspec.json.decode(path.read_bytes(), type=Manifest)


def erased_of(folder: Path) -> Erased | None:
    """What was blanked in a training set; None for nothing."""
    path = folder / ERASED
    return msgspec.json.decode(path.read_bytes(), type=Erased) if path.is_file() else None


def data_file(folder: Path) -> Path:
    """The file with a training set's rows as they are now."""
    erased = erased_of(folder)
    return folder / ("data.parquet" if erased is None else erased.file)


def read(root: Path, digest: str) -> tuple[pa.Table, Manifest]:
    """Rows and manifest of a training set, both verified. Rows of erased subjects are blank."""
    import pyarrow.parquet as pq

    manifest, erased = manifest_of(root, digest), erased_of(root / digest)
    path, expected = data_file(root / digest), manifest.data if erased is None else erased.digest
    if (got := file_digest(path)) != expected:
        raise ContractError(f"{path}", got=got[:12], expected=expected[:12], hint="Training sets are write-once.")
    return pq.read_table(path), manifest


def _check_columns(what: str, table: pa.Table, expected: tuple[str, ...]) -> None:
    if missing := [name for name in expected if name not in table.column_names]:
        raise DataError(f"{what} transform", got=table.column_names, expected=f"also {missing}")


def _microseconds(table: pa.Table) -> pa.Table:
    """The same table with its two times in microseconds UTC."""
    for name in ("event_timestamp", "label_timestamp"):
        index = table.column_names.index(name)
        table = table.set_column(index, pa.field(name, MICROS_UTC), table.column(name).cast(MICROS_UTC))
    return table
