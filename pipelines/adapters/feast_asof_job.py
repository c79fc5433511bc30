"""The answer of `AsofOfflineStore`: computed when it is asked for, kept as a saved dataset, or shown as SQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.saved_dataset import SavedDatasetStorage

from pipelines.adapters.feast_asof_sources import save


class AsofRetrievalJob(RetrievalJob):
    """Feast's interface of an answer. compute, sql and metadata are called each time they are needed."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        sql: Callable[[], str],
        *,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: Callable[[], RetrievalMetadata] | None = None,
        repo_path: Path | None = None,
    ) -> None:
        self._compute = compute
        self._sql = sql
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
        return self._metadata() if self._metadata else None

    def to_sql(self) -> str:
        """One DuckDB statement with the same answer, before on-demand views. A frame is the relation `entity_df`."""
        return self._sql()

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's interface
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:  # noqa: ARG002 - Feast's interface
        frame: pd.DataFrame = self._compute().to_pandas()
        return frame

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the answer to a file storage. Raises SavedDatasetLocationAlreadyExists when it is there already."""
        if not isinstance(storage, SavedDatasetFileStorage):
            raise TypeError(f"AsofOfflineStore keeps SavedDatasetFileStorage; got {type(storage).__name__}")
        save(self._repo_path, storage, lambda: self.to_arrow(timeout=timeout), overwrite=allow_overwrite)
