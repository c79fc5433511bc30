"""Rows that are bad: why, how many, and whether the batch may go on without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pipelines.contracts.errors import DataError
from pipelines.spec.dataset import Stop

SHOWN = 5


def stop_if_unfit(
    dataset: str, stop: Stop, rows: int, bad: Mapping[int, Sequence[str]], table: Sequence[str], where: str
) -> None:
    """Raises DataError when the batch is refused as a whole: too many bad rows, too few rows, or a check of the batch.

    bad: reasons by row number. table: checks that the batch as a whole fails. where: the staged file, for the message.
    """
    if table:
        raise DataError(
            f"dataset {dataset}: the batch fails {'; '.join(table)}", hint=f"Nothing was published; see {where}."
        )
    if rows < stop.min_rows:
        raise DataError(
            f"dataset {dataset}: too few new rows",
            got=rows,
            expected=f"at least {stop.min_rows} (stop.min_rows)",
            hint="Nothing was published.",
        )
    share = len(bad) / rows if rows else 0.0
    if share > stop.quarantined_share:
        reasons = Counter(reason for row in bad.values() for reason in row)
        shown = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(SHOWN))
        raise DataError(
            f"dataset {dataset}: too many bad rows",
            got=f"{len(bad)} of {rows} ({share:.1%}): {shown}",
            expected=f"at most {stop.quarantined_share:.1%} (stop.quarantined_share)",
            hint=f"Nothing was published; the rows are in {where}.",
        )
