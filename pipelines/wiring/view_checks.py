"""What new rows of a view are held against before anybody can read them: its expectations, and the days before.

Every refusal and every drift that is only reported is kept in the lake, with the reasons and where the rows lie.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.adapters.delta_lake import MICROS_UTC, open_lake
from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import DataError
from pipelines.datasets.suite import view_suite
from pipelines.features import partition_drift
from pipelines.features.partition_drift import Shift
from pipelines.settings import Settings
from pipelines.spec.view import ViewSpec

FINDINGS = pa.schema(
    [
        ("as_of", MICROS_UTC),
        ("version", pa.string()),
        ("refused", pa.bool_()),
        ("rows", pa.int64()),
        ("failing", pa.int64()),
        ("reasons", pa.list_(pa.string())),
        ("path", pa.string()),
    ]
)
_SHOWN = 20


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One batch that was refused or reported. `failing`: rows that fail; `path`: where a refused batch lies."""

    as_of: str
    version: str
    refused: bool
    rows: int
    failing: int
    reasons: list[str]
    path: str


def table_of(view: str) -> str:
    """The lake table of a view's findings, over all its versions."""
    return f"checks/{view}"


def check(settings: Settings, spec: ViewSpec, version: str, rows: pa.Table, path: str, as_of_us: int) -> int:
    """How many rows meet the view's expectations, which is all of them.

    path: where the rows can be looked at. Raises DataError naming what fails, and keeps it; drift that is only to be
    reported is kept and raises nothing.
    """
    from pipelines.adapters import gx_checks

    findings = gx_checks.check(rows.drop_columns(["day", "created_timestamp"]), view_suite(spec))
    reasons = [
        *findings.table,
        *(f"row {number}: {'; '.join(why)}" for number, why in sorted(findings.rows.items())[:_SHOWN]),
    ]
    shifted = _shifts(settings, spec, version, rows)
    blocked = spec.drift is not None and spec.drift.action == "block" and bool(shifted)
    failing = len(findings.rows)
    refused = bool(reasons) or blocked
    if refused or shifted:
        told = [*reasons, *(shift.sentence for shift in shifted)]
        _keep(settings, spec, version, as_of_us, refused, rows.num_rows, failing, told, path if refused else "")
    if reasons:
        raise DataError(
            f"view {spec.name}: {failing} of {rows.num_rows} rows fail their checks",
            got=" | ".join(reasons[: len(findings.table) + 3]),
            hint=f"Nothing was published; the rows are in {path}.",
        )
    if blocked:
        raise DataError(
            f"view {spec.name}: a new day has drifted from the days before",
            got=" | ".join(shift.sentence for shift in shifted[:3]),
            hint=f"Nothing was published; the rows are in {path}. If the change is real, widen `drift` in the spec.",
        )
    return int(rows.num_rows)


def kept(settings: Settings, view: str) -> list[Finding]:
    """What was refused or reported of a view, oldest first."""
    lake = open_lake(settings)
    if not lake.exists(table_of(view)):
        return []
    rows = lake.read(table_of(view)).sort_by("as_of").to_pylist()
    return [Finding(**(row | {"as_of": row["as_of"].isoformat()})) for row in rows]


def _shifts(settings: Settings, spec: ViewSpec, version: str, rows: pa.Table) -> list[Shift]:
    lake, table = open_lake(settings), f"features/{version}"
    if spec.drift is None or rows.num_rows == 0 or not lake.exists(table):
        return []  # a first publication has no days before it
    first = pc.min(rows.column("day")).as_py()
    start, end = first - timedelta(days=spec.drift.partitions), first - timedelta(days=1)
    names = ["day", "event_timestamp", *spec.features]
    before = lake.read(table, names, f"day BETWEEN DATE '{start}' AND DATE '{end}'")
    return partition_drift.shifts(spec, before, rows)


def _keep(
    settings: Settings,
    spec: ViewSpec,
    version: str,
    as_of_us: int,
    refused: bool,  # one column of the row
    rows: int,
    failing: int,
    reasons: list[str],
    path: str,
) -> None:
    row = {
        "as_of": from_us(as_of_us),
        "version": version,
        "refused": refused,
        "rows": rows,
        "failing": failing,
        "reasons": reasons,
        "path": path,
    }
    open_lake(settings).append(table_of(spec.name), pa.Table.from_pylist([row], schema=FINDINGS))
