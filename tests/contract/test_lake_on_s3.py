"""An installation whose lake lies on S3: raw rows become features, readable online, and a training set."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import Settings
from pipelines.wiring import datasets, features, training
from tests.e2e.pumps.generate import readings
from tests.s3_server import S3Server
from tests.s3_tables import lake_on_s3

PUMPS = Path(__file__).parent.parent / "e2e" / "pumps"
AS_OF_US = parse_event_time("2026-04-20T00:00:00+00:00")


@pytest.mark.slow
def test_everything_from_raw_rows_to_a_training_set_is_on_s3(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    include = tmp_path / "include"
    for folder in ("datasets", "features", "models"):
        (include / folder).mkdir(parents=True)
    shutil.copy(PUMPS / "pump_failure.yaml", include / "models")
    shutil.copytree(PUMPS / "transforms", include / "transforms")
    readings(include / "data" / "pump_readings.csv")
    with lake_on_s3(s3):
        said = {"HOME": tmp_path / "home", "INCLUDE_DIR": include, "CLOCK": "replay", "PII_KEY": "of the pumps"}
        said |= {"LAKE": "s3://lake/pumps", "LAKE_ENDPOINT": s3.endpoint}
        for name, value in said.items():
            monkeypatch.setenv(f"SLIPWAY_{name}", str(value))
        settings = Settings()
        assert settings.pii_key == SecretStr("of the pumps")
        published = datasets.ingest(settings, "pump_readings", AS_OF_US)
        assert datasets.ingest(settings, "pump_readings", AS_OF_US).version == published.version
        versions = features.apply(settings)
        shown = features.refresh(settings, "pump_condition", AS_OF_US)
        assert shown.values > 0
        digest = training.make_training_set(settings, "pump_failure", AS_OF_US)
        assert pq.read_metadata(settings.training_sets / digest / "data.parquet").num_rows > 0
        assert not settings.lake.exists()

        from pipelines.adapters.delta_lake import open_lake
        from pipelines.cli.main import app

        assert open_lake(settings).tables() == ["datasets/pump_readings", f"features/{versions[0]}"]
        told = CliRunner().invoke(app, ["lake", "maintain"])
        assert told.exit_code == 0, told.output
        assert "datasets/pump_readings: " in told.output
