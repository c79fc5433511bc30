"""A Feast offline store on DuckDB's ASOF join: `offline_store.type: pipelines.adapters.feast_asof.AsofOfflineStore`.

For `FileSource` with Parquet or Delta. Feast's documented semantics: the newest row at or before the entity row's time;
of rows with equal keys and time the one created last; a view's TTL with both edges inclusive (none and zero: no limit);
every entity row comes back once, in its place; null keys and null times match nothing; naive times are UTC.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import compute_non_entity_date_range
from pydantic import StrictInt, StrictStr

from pipelines.adapters.delta_lake import connect
from pipelines.adapters.feast_asof_entities import entity_frame, in_order, spine
from pipelines.adapters.feast_asof_job import AsofRetrievalJob
from pipelines.adapters.feast_asof_sources import append, bind_source, log_features, source_sql
from pipelines.contracts.clocks import to_us
from pipelines.features import asof


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """Configuration of the store. Feast finds the store by this class's module and name: it must stay here."""

    type: StrictStr = "pipelines.adapters.feast_asof.AsofOfflineStore"
    memory_limit: StrictStr | None = None
    """What DuckDB may hold in memory (`4GB`); past it, it spills. The answer comes on top. None: DuckDB's own."""
    temp_directory: StrictStr | None = None
    """Where it spills; None: the machine's temporary directory."""
    threads: StrictInt | None = None
    """How many threads it uses; None: one a core."""


class AsofOfflineStore(OfflineStore):
    """See the module."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Features as of each entity row's time.

        entity_df: a frame, DuckDB SQL, or None with `start_date` and `end_date`: then every key and time of the views.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        wanted = _features_by_view(feature_views, feature_refs, on_demand)
        chosen = [view for view in feature_views if wanted[_referred(view.projection)]]
        span = None
        if entity_df is None:
            span = compute_non_entity_date_range(
                feature_views, start_date=kwargs.get("start_date"), end_date=kwargs.get("end_date")
            )
        frame, timestamp = entity_frame(entity_df)

        def join_of(view: FeatureView, relation: str) -> asof.ViewJoin:
            return _join(view, wanted[_referred(view.projection)], relation, full_feature_names)

        def entity_rows(connection: duckdb.DuckDBPyConnection, joins: Sequence[asof.ViewJoin]) -> pa.Table:
            if frame is not None:
                return frame
            return in_order(connection, spine(joins, span) if span else str(entity_df))

        def compute() -> pa.Table:
            with _connect(config) as connection:
                joins = []
                for index, view in enumerate(chosen):
                    bind_source(connection, config, _source(view), f"view{index}")
                    joins.append(join_of(view, f"view{index}"))
                entity = entity_rows(connection, joins)
                return asof.join(connection, entity, timestamp, joins, created_cutoff=filter_by_created_timestamp)

        def sql() -> str:
            joins = [join_of(view, source_sql(config, _source(view))) for view in chosen]
            entity = "entity_df" if frame is not None else f"({spine(joins, span) if span else entity_df})"
            return asof.sql(entity, timestamp, joins, created_cutoff=filter_by_created_timestamp)

        def metadata() -> RetrievalMetadata:
            low, high = span or (None, None)
            if span is not None:
                return RetrievalMetadata(feature_refs, [], low, high)
            with _connect(config) as connection:
                asked = entity_rows(connection, [])
            keys = [name for name in asked.column_names if name != timestamp]
            edges = pc.min_max(asked.column(timestamp)).as_py()
            return RetrievalMetadata(feature_refs, keys, edges["min"], edges["max"])

        return AsofRetrievalJob(
            compute,
            sql,
            full_feature_names=full_feature_names,
            on_demand_feature_views=on_demand,
            metadata=metadata,
            repo_path=config.repo_path,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of every key with a time in [start_date, end_date]."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        order = ", ".join(f'"{column}" DESC NULLS LAST' for column in times)
        parts = f"PARTITION BY {_listed(join_key_columns)} " if join_key_columns else ""
        newest = f"QUALIFY row_number() OVER ({parts}ORDER BY {order}) = 1"
        columns = [*join_key_columns, *feature_name_columns, *times]
        return _pull(config, data_source, columns, timestamp_field, start_date, end_date, newest)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row with a time in [start_date, end_date]; a missing edge is open."""
        times = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        columns = [*join_key_columns, *feature_name_columns, *times]
        return _pull(config, data_source, columns, timestamp_field, start_date, end_date, "")

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's source. Raises ValueError when the columns are not the source's, in its order."""
        append(config, _source(feature_view), table)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,  # noqa: ARG004 - Feast's interface
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004 - Feast's interface
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004 - Feast's interface
    ) -> None:
        """Append logged features to the destination as a new Parquet file."""
        log_features(data, logging_config)


def _connect(config: RepoConfig) -> duckdb.DuckDBPyConnection:
    store = config.offline_store
    assert isinstance(store, AsofOfflineStoreConfig)
    return connect(
        memory_limit=store.memory_limit,
        temp_directory=store.temp_directory or tempfile.gettempdir(),
        threads=store.threads,
    )


def _source(view: FeatureView) -> DataSource:
    if view.batch_source is None:
        raise ValueError(f"Feature view '{view.name}' has no batch_source and cannot be queried.")
    return view.batch_source


def _features_by_view(
    views: Sequence[FeatureView], refs: Sequence[str], on_demand: Sequence[OnDemandFeatureView]
) -> dict[str, list[str]]:
    """Features to be joined, by the name a view is referred to by; what on-demand views are made of is among them."""
    wanted: dict[str, list[str]] = {_referred(view.projection): [] for view in views}
    for ref in refs:
        view, _, feature = ref.partition(":")
        if view in wanted and feature not in wanted[view]:
            wanted[view].append(feature)
    for odfv in on_demand:
        for projection in odfv.source_feature_view_projections.values():
            listed = wanted.get(_referred(projection))
            if listed is not None:
                listed += [field.name for field in projection.features if field.name not in listed]
    return wanted


def _referred(projection: FeatureViewProjection) -> str:
    """The name a view goes by in feature references."""
    return str(projection.name_to_use())  # type: ignore[no-untyped-call]  # Feast's


def _join(view: FeatureView, features: Sequence[str], relation: str, full_feature_names: bool) -> asof.ViewJoin:
    source = _source(view)
    mapped = view.projection.join_key_map or {}
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return asof.ViewJoin(
        relation=relation,
        keys={key: mapped.get(key, key) for key in keys},
        features={feature: f"{prefix}{feature}" for feature in features},
        timestamp=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl_us=round(view.ttl.total_seconds() * 1_000_000) if view.ttl else None,
    )


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp: str,
    start: datetime | None,
    end: datetime | None,
    qualify: str,
) -> RetrievalJob:
    def query(connection: duckdb.DuckDBPyConnection, relation: str) -> str:
        kind = str(connection.execute(f'DESCRIBE SELECT "{timestamp}" FROM {relation}').fetchall()[0][1])
        limits = asof.within(timestamp, kind, to_us(start) if start else None, to_us(end) if end else None)
        where = f"WHERE {' AND '.join(limits)}" if limits else ""
        return f"SELECT {_listed(list(dict.fromkeys(columns)))} FROM {relation} {where} {qualify}"

    def compute() -> pa.Table:
        with _connect(config) as connection:
            bind_source(connection, config, source, "source")
            return connection.execute(query(connection, "source")).fetch_arrow_table()

    def sql() -> str:
        with _connect(config) as connection:
            return query(connection, source_sql(config, source))

    return AsofRetrievalJob(compute, sql, repo_path=config.repo_path)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
