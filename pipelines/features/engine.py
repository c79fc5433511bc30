"""A view's rows from its datasets: windows of time, publication stamps, declared types.

A row's `event_timestamp` is when its value could first be read online. A raw row known at `k` is taken up by the
publication at the next step of the view's cadence, and is readable at the latest one step after that:

    available_at = ceil(known_at, publish_every) + publish_every

`known_at` has the dataset's arrival delay in it. Transforms see `available_at` beside the raw columns and build on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa

from pipelines.contracts.errors import ContractError
from pipelines.datasets.conform import SQL_TYPES
from pipelines.features.expressions import evaluate
from pipelines.spec.view import ViewSpec


class Span(msgspec.Struct, frozen=True):
    """Publication stamps to be computed: after (exclusive; None for all) to until (inclusive), in microseconds."""

    after_us: int | None
    until_us: int

    @property
    def empty(self) -> bool:
        """Whether no stamp lies in it."""
        return self.after_us is not None and self.after_us >= self.until_us


def horizon_us(spec: ViewSpec, as_of_us: int, complete_us: Iterable[int]) -> int:
    """The newest stamp that can be computed in full at `as_of_us`, with datasets complete up to `complete_us`."""
    step = spec.publish_every.us
    return min(as_of_us, min(complete_us) // step * step + step)


def known_span_us(spec: ViewSpec, dataset: str, span: Span) -> tuple[int | None, int]:
    """(after, until] of knowledge that the stamps of a span are made of: cut by the look-back, unless it is static."""
    step = spec.publish_every.us
    if span.after_us is None or dataset in spec.static:
        return None, span.until_us
    return span.after_us - spec.look_back.us - 2 * step, span.until_us


def available_at_sql(step_us: int, known_at: str = "known_at") -> str:
    """SQL of `available_at` (naive UTC) from the naive UTC column `known_at`."""
    return f"make_timestamp((epoch_us({known_at}) + {step_us - 1}) // {step_us} * {step_us} + {step_us})"


def bind_available(connection: duckdb.DuckDBPyConnection, spec: ViewSpec, known: str, name: str, span: Span) -> None:
    """Make the view `name` of the view `known`: the rows readable by the span's end, with their `available_at`."""
    stamp = available_at_sql(spec.publish_every.us)
    connection.execute(
        f'CREATE OR REPLACE VIEW "{name}" AS SELECT *, {stamp} AS available_at FROM "{known}" '
        f"WHERE {stamp} <= make_timestamp({span.until_us})"
    )


def rows(connection: duckdb.DuckDBPyConnection, include: Path, spec: ViewSpec, span: Span, created_us: int) -> pa.Table:
    """The view's rows with stamps in the span, in the lake's layout, ordered by stamp and keys.

    The connection has a view for each of the spec's datasets (`bind_available`).
    Raises ContractError when the transform cannot be computed or lacks a column.
    """
    made = evaluate(connection, include, spec.transform, spec.datasets)
    require_columns(spec, made.column_names)
    typed = [f'CAST("{name}" AS {SQL_TYPES[kind]}) AS "{name}"' for name, kind in spec.entity.keys.items()]
    typed += [_feature(name, feature.type) for name, feature in spec.features.items()]
    keys = ", ".join(f'"{name}"' for name in spec.entity.keys)
    after = "" if span.after_us is None else f"AND epoch_us(event_timestamp) > {span.after_us}"
    connection.register("__made", made)
    try:
        return connection.execute(
            f"""SELECT {", ".join(typed)}, CAST(event_timestamp AS TIMESTAMPTZ) AS event_timestamp,
                       make_timestamptz({created_us}) AS created_timestamp, CAST(event_timestamp AS DATE) AS day
                FROM __made WHERE epoch_us(event_timestamp) <= {span.until_us} {after}
                ORDER BY event_timestamp, {keys}"""
        ).fetch_arrow_table()
    finally:
        connection.unregister("__made")


def require_columns(spec: ViewSpec, made: Sequence[str]) -> None:
    """Raise ContractError unless a transform made all that the spec declares."""
    wanted = [*spec.entity.keys, *spec.features, "event_timestamp"]
    if missing := [name for name in wanted if name not in made]:
        raise ContractError(f"view {spec.name}: transform lacks column {', '.join(missing)}", got=made, expected=wanted)


def _feature(name: str, kind: str) -> str:
    value = f'CAST("{name}" AS {SQL_TYPES[kind]})'
    if kind in ("float32", "float64"):
        value = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"
    return f'{value} AS "{name}"'
