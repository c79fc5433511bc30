"""One batch of a dataset on its way into the lake: its reference, and the files the steps hand on.

stage/<dataset>/<as_of_us>/staged.parquet    the batch, typed, one row number each
                           reasons.parquet   why a row is bad (row number, reason)
                           good.parquet      what will be published
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa

ROW = "_row"
UNREADABLE = "_unreadable"
RAW = "_raw"
OWN = (ROW, UNREADABLE, RAW)

REASONS = pa.schema([(ROW, pa.int64()), ("reason", pa.string())])


class StageRef(msgspec.Struct, frozen=True, kw_only=True):
    """A batch by reference. `after_us` (exclusive) to `as_of_us` (inclusive) is the span of knowledge it covers.

    A batch whose span is already published is `empty`: every step passes it through. `erased`: rows left out because
    their subject was erased, by erasure.
    """

    dataset: str
    as_of_us: int
    after_us: int | None
    rows: int
    folder: str
    digest: str
    empty: bool = False
    erased: dict[str, int] = {}

    @property
    def staged(self) -> Path:
        """The file of the rows as they were taken."""
        return Path(self.folder) / "staged.parquet"

    @property
    def reasons(self) -> Path:
        """The file of the bad rows' numbers and reasons."""
        return Path(self.folder) / "reasons.parquet"

    @property
    def good(self) -> Path:
        """The file of the rows that are left."""
        return Path(self.folder) / "good.parquet"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What an ingest did. `version` is the Delta table's; `rows` and `quarantined` count this batch."""

    dataset: str
    as_of_us: int
    rows: int
    quarantined: int
    version: int
    digest: str
