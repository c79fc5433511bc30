"""A view's rows on Spark: the same Ibis expression, over the lake's Delta tables read by Spark.

What comes back is what `pipelines.features.engine.rows` gives on DuckDB: the lake's layout, ordered, values equal. The
rows a build adds are then checked and committed by the same code as DuckDB's, so that every table keeps one writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipelines.contracts.clocks import from_us
from pipelines.contracts.errors import ContractError
from pipelines.features import engine, expressions
from pipelines.features.engine import Span
from pipelines.spec.view import ViewSpec

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_TYPES = {"int32": "INT", "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE", "string": "STRING"}
SQL_TYPES = {**_TYPES, "bool": "BOOLEAN"}

Source = Callable[["SparkSession"], "DataFrame"]
"""Gives a dataset's rows to a session: `known_at` and `day` beside the raw columns."""


def delta_source(uri: str, version: int | None = None) -> Source:
    """The Delta table at `uri`, at a version or the newest."""

    def read(session: SparkSession) -> DataFrame:
        reader = session.read.format("delta")
        path = f"s3a://{uri.removeprefix('s3://')}" if uri.startswith("s3://") else uri  # Hadoop's name for S3
        return (reader if version is None else reader.option("versionAsOf", version)).load(path)

    return read


def arrow_source(rows: pa.Table) -> Source:
    """Rows that are in memory."""
    return lambda session: session.createDataFrame(rows)


def rows(
    session: SparkSession,
    include: Path,
    spec: ViewSpec,
    sources: Mapping[str, Source],
    span: Span,
    created_us: int,
) -> pa.Table:
    """The view's rows with stamps in the span, in the lake's layout, ordered by stamp and keys.

    sources: one for each of the spec's datasets. Raises ContractError when the transform cannot be computed or lacks a
    column.
    """
    for name in spec.datasets:
        _expose(session, spec, name, sources[name](session), span)
    made = _evaluated(session, include, spec)
    engine.require_columns(spec, made.columns)
    made.createOrReplaceTempView("__made")
    answer = session.sql(_projection(spec, span, created_us)).toArrow()
    # Spark cannot order by what it has projected away into other types any cheaper than Arrow.
    order = [("event_timestamp", "ascending"), *((key, "ascending") for key in spec.entity.keys)]
    return answer.sort_by(order)


def _expose(session: SparkSession, spec: ViewSpec, name: str, known: DataFrame, span: Span) -> None:
    """The dataset as the transform sees it: known in the span's reach, and readable by the span's end."""
    after_us, until_us = engine.known_span_us(spec, name, span)
    known.createOrReplaceTempView("__known")
    step = spec.publish_every.us
    stamp = f"timestamp_micros((unix_micros(known_at) + {step - 1}) div {step} * {step} + {step})"
    where = [f"known_at <= timestamp_micros({until_us})", f"day <= DATE '{from_us(until_us).date()}'"]
    if after_us is not None:
        where += [f"known_at > timestamp_micros({after_us})", f"day >= DATE '{from_us(after_us).date()}'"]
    where.append(f"{stamp} <= timestamp_micros({span.until_us})")
    query = f"SELECT *, {stamp} AS available_at FROM __known WHERE {' AND '.join(where)}"
    session.sql(query).createOrReplaceTempView(name)


def _evaluated(session: SparkSession, include: Path, spec: ViewSpec) -> DataFrame:
    import ibis
    from pyspark.errors import PySparkException

    function = expressions.load(include, spec.transform)
    backend = ibis.pyspark.from_connection(session)
    try:
        expression = function({name: backend.table(name) for name in spec.datasets})
        return session.sql(str(ibis.to_sql(expression, dialect="pyspark")))
    except (ibis.common.exceptions.IbisError, PySparkException, AttributeError, KeyError, TypeError) as error:
        raise ContractError(
            f"transform {spec.transform} on Spark",
            got=f"{type(error).__name__}: {error}",
            expected="an Ibis table expression that both engines can compute",
        ) from error


def _projection(spec: ViewSpec, span: Span, created_us: int) -> str:
    columns = [f"CAST(`{name}` AS {SQL_TYPES[kind]}) AS `{name}`" for name, kind in spec.entity.keys.items()]
    for name, feature in spec.features.items():
        value = f"CAST(`{name}` AS {SQL_TYPES[feature.type]})"
        if feature.type in ("float32", "float64"):
            value = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"
        columns.append(f"{value} AS `{name}`")
    columns.append("CAST(event_timestamp AS TIMESTAMP) AS event_timestamp")
    columns.append(f"timestamp_micros({created_us}) AS created_timestamp")
    columns.append("CAST(event_timestamp AS DATE) AS day")
    stamp = "unix_micros(CAST(event_timestamp AS TIMESTAMP))"
    after = "" if span.after_us is None else f" AND {stamp} > {span.after_us}"
    return f"SELECT {', '.join(columns)} FROM __made WHERE {stamp} <= {span.until_us}{after}"
