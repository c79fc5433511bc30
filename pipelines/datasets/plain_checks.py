"""The expectations that a spec's columns stand for, by Arrow: micro-batches cannot wait for a validation library."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.suite import Expectation

_NOT_NULL, _BETWEEN = "column_values_to_not_be_null", "column_values_to_be_between"
_UNIQUE = ("column_values_to_be_unique", "compound_columns_to_be_unique")


def others(suite: Sequence[Expectation]) -> list[Expectation]:
    """What `failures` does not judge: a spec's own checks. Uniqueness is the reader's business."""
    return [one for one in suite if one.name not in (_NOT_NULL, *_UNIQUE) and not _is_plain_between(one)]


def failures(rows: pa.Table, suite: Sequence[Expectation]) -> dict[int, list[str]]:
    """Reasons by row number: nulls where none may be, values outside of closed bounds."""
    found: dict[int, list[str]] = {}
    for one in suite:
        if one.name == _NOT_NULL:
            wrong = pc.is_null(rows.column(one.arguments["column"]))
        elif _is_plain_between(one):
            column = rows.column(one.arguments["column"])
            low, high = one.arguments["min_value"], one.arguments["max_value"]
            below = pc.less(column, low) if low is not None else pc.equal(column, None)
            above = pc.greater(column, high) if high is not None else pc.equal(column, None)
            wrong = pc.or_kleene(below, above)
        else:
            continue
        for number in pc.indices_nonzero(pc.fill_null(wrong, False)).to_pylist():
            found.setdefault(number, []).append(one.reason)
    return found


def _is_plain_between(one: Expectation) -> bool:
    return one.name == _BETWEEN and set(one.arguments) == {"column", "min_value", "max_value"}
