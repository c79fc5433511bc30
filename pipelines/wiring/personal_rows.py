"""Rows on their way into the lake without what must not lie there: PII in clear text, and subjects that were erased."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from pipelines.contracts.errors import ContractError, DataError
from pipelines.contracts.pii import KeyedHash
from pipelines.datasets.staging import RAW, ROW
from pipelines.settings import Settings
from pipelines.spec.dataset import DatasetSpec
from pipelines.wiring import tombstones


def hashed(settings: Settings, spec: DatasetSpec, rows: pa.Table) -> pa.Table:
    """PII columns replaced by the installation's keyed hash: equal values stay equal, and nothing can be read back."""
    personal = [name for name, column in spec.columns.items() if column.pii]
    if not personal:
        return rows
    try:
        keyed = KeyedHash(settings.pii_key.get_secret_value())
    except ContractError as error:
        what = f"dataset {spec.name}: PII columns {personal}"
        raise DataError(what, got="no key", expected=error.expected, hint=error.hint) from None
    for name in personal:
        values = [None if value is None else keyed.of(str(value)) for value in rows.column(name).to_pylist()]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    if RAW not in rows.column_names:
        return rows
    # The raw text would carry the values past the hash.
    return rows.set_column(rows.column_names.index(RAW), RAW, pa.nulls(rows.num_rows, pa.string()))


def without_erased(settings: Settings, rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Rows without those of erased subjects, and how many of these there were by erasure."""
    found = tombstones.load(settings).of_table(rows)
    if not found:
        return rows, {}
    kept = rows.filter(pa.array([number not in found for number in range(rows.num_rows)], pa.bool_()))
    return numbered(kept) if ROW in rows.column_names else kept, dict(Counter(found.values()))


def numbered(rows: pa.Table) -> pa.Table:
    """Staged rows, numbered anew."""
    return rows.set_column(rows.column_names.index(ROW), ROW, pa.array(range(rows.num_rows), pa.int64()))
