"""What the installation gives to Spark: the lake's tables, read by Spark itself, for a view's rows and for a join."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from pipelines.adapters import spark_engine, spark_join, spark_session
from pipelines.adapters.delta_lake import open_lake
from pipelines.contracts.errors import NotYetError
from pipelines.features.asof import ViewJoin
from pipelines.features.engine import Span
from pipelines.settings import Settings
from pipelines.spec.view import ViewSpec
from pipelines.wiring import datasets


def compute(settings: Settings, spec: ViewSpec, span: Span, created_us: int) -> pa.Table:
    """`features.compute` on Spark: every dataset at the version it has now. Raises NotYetError."""
    sources = {}
    for name in spec.datasets:
        if not open_lake(settings).exists(table := datasets.table_of(name)):
            raise NotYetError(f"dataset {table}", got="never published", hint=f"Run dataset.{name} first.")
        sources[name] = _source(settings, table)
    session = spark_session.session(settings)
    return spark_engine.rows(session, settings.include_dir, spec, sources, span, created_us)


def join(settings: Settings, entity: pa.Table, timestamp: str, joins: Mapping[str, ViewJoin]) -> pa.Table:
    """`asof.join` on Spark, over tables of the lake by name."""
    session = spark_session.session(settings)
    relations = {one.relation: _source(settings, table)(session) for table, one in joins.items()}
    return spark_join.join(session, entity, timestamp, list(joins.values()), relations)


def _source(settings: Settings, table: str) -> spark_engine.Source:
    lake = open_lake(settings)
    return spark_engine.delta_source(lake.uri(table), lake.version(table))
