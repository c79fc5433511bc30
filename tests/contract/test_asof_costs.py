"""What AsofOfflineStore reads and holds: only the row groups and columns it needs, only the memory it may have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.adapters.delta_lake import connect
from pipelines.features import asof

BASE = datetime(2013, 3, 9, 22, tzinfo=UTC)


def test_row_groups_and_columns_that_no_answer_needs_are_not_read(tmp_path: Path) -> None:
    """Their bytes are destroyed: who reads them fails."""
    from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    from pipelines.adapters.feast_asof import AsofOfflineStore

    path = tmp_path / "rows.parquet"
    hours = [BASE + timedelta(hours=hour) for hour in range(400)]
    for kind in (pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.timestamp("ns")):
        stamps = pa.array([at if kind.tz else at.replace(tzinfo=None) for at in hours], kind)
        table = pa.table(
            {"k": [1] * 400, "stamp": stamps, "wanted": [float(n) for n in range(400)], "other": range(400)}
        )
        pq.write_table(table, path, row_group_size=100, use_dictionary=False)
        _destroy(path, lambda group, column: column == "other" or group in (0, 3))
        view = FeatureView(
            name="v",
            entities=[Entity(name="k", join_keys=["k"], value_type=ValueType.INT64)],
            schema=[
                Field(name="k", dtype=Int64),
                Field(name="wanted", dtype=Float64),
                Field(name="other", dtype=Int64),
            ],
            source=FileSource(path=str(path), timestamp_field="stamp"),
            ttl=timedelta(hours=10),
        )
        view.entity_columns = [Field(name="k", dtype=Int64)]
        config = RepoConfig(
            project="p",
            provider="local",
            registry="none",
            offline_store={"type": "pipelines.adapters.feast_asof.AsofOfflineStore"},
        )

        def ask(feature: str, *at: int) -> list[Any]:
            asked = pd.DataFrame({"k": [1] * len(at), "event_timestamp": [hours[n] for n in at]})
            # Called within the round that made it: B023 sees none of the next one's values.
            job = AsofOfflineStore.get_historical_features(config, [view], [f"v:{feature}"], asked, _NoRegistry(), "p")  # noqa: B023
            return list(job.to_arrow().column(feature).to_pylist())

        assert ask("wanted", 150, 290) == [150.0, 290.0]
        for feature, at in (("wanted", 50), ("wanted", 350), ("other", 150)):
            with pytest.raises(Exception, match=r"(?i)parquet|corrupt|invalid|snappy|decompress|type"):
                ask(feature, at)


class _NoRegistry:
    """A registry with no on-demand views."""

    def list_on_demand_feature_views(self, *_: object, **__: object) -> list[object]:
        return []


def _destroy(path: Path, chosen: Any) -> None:
    """Overwrite the bytes of column chunks that `chosen(row group, column)` names."""

    metadata = pq.ParquetFile(path).metadata
    with path.open("r+b") as file:
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(index)
                if chosen(group, chunk.path_in_schema):
                    file.seek(chunk.data_page_offset)
                    file.write(b"\xff" * chunk.total_compressed_size)


def test_a_join_past_its_memory_spills_and_ends(tmp_path: Path) -> None:
    rows = 600_000
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "k": rng.integers(0, 5000, rows),
            "event_timestamp": pa.array(rng.integers(0, 10**12, rows), pa.timestamp("us", "UTC")),
            **{f"f{n}": rng.random(rows) for n in range(6)},
        }
    )
    one = asof.ViewJoin(relation="f", keys={"k": "k"}, features={f"f{n}": f"g{n}" for n in range(6)}, created=None)
    answers = []
    for limit in ("60MB", None):
        spill = tmp_path / str(limit)
        with connect(memory_limit=limit, temp_directory=str(spill), threads=2) as connection:
            connection.register("f", table)
            answers.append(asof.join(connection, table.select(["k", "event_timestamp"]), "event_timestamp", [one]))
            assert spill.exists() == (limit is not None)
    assert answers[0].equals(answers[1])
