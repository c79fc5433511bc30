"""A Feast offline store on DuckDB's ASOF join: `offline_store.type: pipelines.adapters.feast_asof.AsofOfflineStore`.

For `FileSource` with Parquet or Delta. Feast's documented semantics: the newest row at or before the entity row's time;
of rows with equal keys and time the one created last; a view's TTL with both edges inclusive (none and zero: no limit);
every entity row comes back once, in its place; null keys and null times match nothing; naive times are UTC.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, FeatureView
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range
from pydantic import StrictStr

from pipelines.adapters.delta_lake import DeltaLake, connect
from pipelines.contracts.clocks import to_us
from pipelines.features import asof

EVENT_TIMESTAMP = "event_timestamp"


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """Configuration of the store. Feast finds the store by this class's module and name: it must stay here."""

    type: StrictStr = "pipelines.adapters.feast_asof.AsofOfflineStore"


class AsofRetrievalJob(RetrievalJob):
    """An answer that is computed when it is asked for."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
        repo_path: Path | None = None,
    ) -> None:
        self._compute = compute
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata
        self._repo_path = repo_path

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's interface
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002 - Feast's interface
        frame: pd.DataFrame = self._compute().to_pandas()
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the answer to a file storage. Raises SavedDatasetLocationAlreadyExists when it is there already."""
        assert isinstance(storage, SavedDatasetFileStorage)
        path = FileSource.get_uri_for_file_path(repo_path=self._repo_path, uri=storage.file_options.uri)
        if not allow_overwrite and Path(path).exists():
            raise SavedDatasetLocationAlreadyExists(location=storage.file_options.uri)
        answer = self.to_arrow(timeout=timeout)
        if isinstance(storage.file_options.file_format, DeltaFormat):
            lake, table = _delta(path)
            lake.replace(table, answer)
            return
        filesystem, inner = FileSource.create_filesystem_and_path(path, storage.file_options.s3_endpoint_override)
        if inner.endswith(".parquet"):
            if filesystem is None:
                Path(inner).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(answer, where=inner, filesystem=filesystem)
        else:
            pq.write_to_dataset(answer, root_path=inner, filesystem=filesystem)


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
        span = None
        if entity_df is None:
            span = compute_non_entity_date_range(
                feature_views, start_date=kwargs.get("start_date"), end_date=kwargs.get("end_date")
            )
        frame, timestamp = _entity_frame(entity_df)

        def compute() -> pa.Table:
            with connect() as connection:
                joins = [
                    _join(
                        connection,
                        config,
                        view,
                        wanted[_referred(view.projection)],
                        f"view{index}",
                        full_feature_names,
                    )
                    for index, view in enumerate(feature_views)
                    if wanted[_referred(view.projection)]
                ]
                entity = frame if frame is not None else _spine(connection, joins, span)
                return asof.join(connection, entity, timestamp, joins, created_cutoff=filter_by_created_timestamp)

        return AsofRetrievalJob(
            compute,
            full_feature_names=full_feature_names,
            on_demand_feature_views=on_demand,
            metadata=_metadata(frame, timestamp, feature_refs, span),
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
        source = feature_view.batch_source
        if source is None:
            raise ValueError(f"Feature view '{feature_view.name}' has no batch_source.")
        if not isinstance(source, FileSource):
            raise ValueError(f"AsofOfflineStore writes FileSource; got {type(source).__name__} '{source.name}'")
        expected = [name for name, _ in source.get_table_column_names_and_types(config)]
        if expected != table.column_names:
            raise ValueError(
                f"The table has columns {table.column_names}; the source expects {expected}, in this order."
            )
        path = FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.path)
        if isinstance(source.file_format, DeltaFormat):
            lake, name = _delta(path)
            stored = lake.schema(name)
            lake.append(name, table.cast(pa.schema([stored.field(column) for column in table.column_names])))
        elif Path(path).is_dir():
            pq.write_table(table, Path(path) / f"{uuid.uuid4().hex}.parquet")
        else:
            # A single Parquet file cannot be appended to: it is replaced by one that has both, in one rename.
            there = pq.read_table(path)
            temporary = f"{path}.{os.getpid()}.tmp"
            pq.write_table(pa.concat_tables([there, table.cast(there.schema)]), temporary)
            Path(temporary).replace(path)
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
        destination = logging_config.destination
        assert isinstance(destination, FileLoggingDestination)
        rows = ds.dataset(data, format="parquet").to_table() if isinstance(data, Path) else data
        filesystem, path = FileSource.create_filesystem_and_path(destination.path, destination.s3_endpoint_override)
        pq.write_to_dataset(
            rows,
            root_path=path,
            filesystem=filesystem,
            partition_cols=destination.partition_by or None,
            basename_template=f"{uuid.uuid4().hex}-{{i}}.parquet",
            existing_data_behavior="overwrite_or_ignore",
        )


def bind_source(connection: duckdb.DuckDBPyConnection, config: RepoConfig, source: DataSource, name: str) -> None:
    """Make a file source readable as the view `name`, under the names of its field mapping.

    Local Parquet and Delta are scanned by DuckDB; remote ones through Arrow, with columns and row groups pruned.
    Raises ValueError for a source of another kind.
    """
    if not isinstance(source, FileSource):
        raise ValueError(f"AsofOfflineStore reads FileSource; got {type(source).__name__} '{source.name}'")
    path = FileSource.get_uri_for_file_path(repo_path=config.repo_path, uri=source.path)
    remote = "://" in path and not path.startswith("file://")
    raw = f"{name} raw"
    if isinstance(source.file_format, DeltaFormat):
        lake, table = _delta(path.removeprefix("file://"))
        lake.bind(connection, raw, table)
    elif remote:
        filesystem, inner = FileSource.create_filesystem_and_path(path, source.s3_endpoint_override or "")
        connection.register(raw, ds.dataset(inner, filesystem=filesystem, format="parquet", partitioning="hive"))
    else:
        local = Path(path.removeprefix("file://"))
        files = f"{local}/**/*.parquet" if local.is_dir() else str(local)
        escaped = files.replace("'", "''")
        connection.execute(f"CREATE OR REPLACE TEMP VIEW \"{raw}\" AS SELECT * FROM read_parquet('{escaped}')")
    there = [str(row[0]) for row in connection.execute(f'DESCRIBE "{raw}"').fetchall()]
    mapped = {old: new for old, new in source.field_mapping.items() if old in there and new not in there}
    added = "".join(f', "{old}" AS "{new}"' for old, new in mapped.items())
    connection.execute(f'CREATE OR REPLACE TEMP VIEW "{name}" AS SELECT *{added} FROM "{raw}"')


def _delta(path: str) -> tuple[DeltaLake, str]:
    return DeltaLake(Path(path).parent), Path(path).name


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


def _join(
    connection: duckdb.DuckDBPyConnection,
    config: RepoConfig,
    view: FeatureView,
    features: Sequence[str],
    relation: str,
    full_feature_names: bool,
) -> asof.ViewJoin:
    source = view.batch_source
    if source is None:
        raise ValueError(f"Feature view '{view.name}' has no batch_source and cannot be queried.")
    bind_source(connection, config, source, relation)
    mapped = view.projection.join_key_map or {}
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    keys = [column.name for column in view.entity_columns if column.name != DUMMY_ENTITY_ID]
    return asof.ViewJoin(
        relation=relation,
        keys={key: mapped.get(key, key) for key in keys},
        features={feature: f"{prefix}{feature}" for feature in features},
        timestamp=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl_us=int(view.ttl.total_seconds() * 1_000_000) if view.ttl else None,
    )


def _entity_frame(entity_df: pd.DataFrame | str | None) -> tuple[pa.Table | None, str]:
    if entity_df is None:
        return None, EVENT_TIMESTAMP
    if isinstance(entity_df, str):
        with connect() as connection:
            connection.execute("SET preserve_insertion_order=true")
            frame = connection.execute(entity_df).fetch_arrow_table()
        kinds = {
            field.name: np.dtype("datetime64[us]") if pa.types.is_timestamp(field.type) else np.dtype("O")
            for field in frame.schema
        }
        return frame, str(infer_event_timestamp_from_entity_df(kinds))
    timestamp = str(infer_event_timestamp_from_entity_df(dict(zip(entity_df.columns, entity_df.dtypes, strict=True))))
    if not pd.api.types.is_datetime64_any_dtype(entity_df[timestamp].dtype):
        entity_df = entity_df.assign(**{timestamp: pd.to_datetime(entity_df[timestamp], utc=True)})
    return pa.Table.from_pandas(entity_df, preserve_index=False), timestamp


def _spine(
    connection: duckdb.DuckDBPyConnection, joins: Sequence[asof.ViewJoin], span: tuple[datetime, datetime] | None
) -> pa.Table:
    """Entity rows when none are given: every key and time at which any of the views has a row in the span."""
    assert span is not None
    keys = sorted(joins[0].keys.values())
    if any(sorted(one.keys.values()) != keys for one in joins):
        raise ValueError(
            f"Without an entity frame all views must share their join keys; got {[one.keys for one in joins]}"
        )
    parts = []
    for one in joins:
        stamp = f'epoch_us("{one.timestamp}")'
        columns = [f'"{column}" AS "{name}"' for column, name in sorted(one.keys.items(), key=lambda item: item[1])]
        columns.append(f"make_timestamptz({stamp}) AS {EVENT_TIMESTAMP}")
        span_us = f"{to_us(span[0])} AND {to_us(span[1])}"
        parts.append(f'SELECT {", ".join(columns)} FROM "{one.relation}" WHERE {stamp} BETWEEN {span_us}')
    order = ", ".join([*(f'"{key}"' for key in keys), EVENT_TIMESTAMP])
    return connection.execute(
        f"SELECT DISTINCT * FROM ({' UNION ALL '.join(parts)}) ORDER BY {order}"
    ).fetch_arrow_table()


def _metadata(
    frame: pa.Table | None, timestamp: str, refs: list[str], span: tuple[datetime, datetime] | None
) -> RetrievalMetadata:
    low, high = span or (None, None)
    keys: list[str] = []
    if frame is not None:
        keys = [name for name in frame.column_names if name != timestamp]
        stamps = frame.column(timestamp).to_pandas()
        if stamps.notna().any():
            low, high = stamps.min().to_pydatetime(), stamps.max().to_pydatetime()
    return RetrievalMetadata(features=refs, keys=keys, min_event_timestamp=low, max_event_timestamp=high)


def _pull(
    config: RepoConfig,
    source: DataSource,
    columns: Sequence[str],
    timestamp: str,
    start: datetime | None,
    end: datetime | None,
    qualify: str,
) -> RetrievalJob:
    limits = [f'epoch_us("{timestamp}") >= {to_us(start)}'] if start else []
    limits += [f'epoch_us("{timestamp}") <= {to_us(end)}'] if end else []
    where = f"WHERE {' AND '.join(limits)}" if limits else ""

    def compute() -> pa.Table:
        with connect() as connection:
            bind_source(connection, config, source, "source")
            query = f"SELECT {_listed(list(dict.fromkeys(columns)))} FROM source {where} {qualify}"
            return connection.execute(query).fetch_arrow_table()

    return AsofRetrievalJob(compute, repo_path=config.repo_path)


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)
