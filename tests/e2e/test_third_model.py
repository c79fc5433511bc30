"""A model about pumps, not flights: one YAML file, its transforms and a CSV, from raw rows to answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.contracts.clocks import from_us, parse_event_time
from pipelines.settings import Settings
from pipelines.spec.loading import names
from pipelines.stack import down, up
from pipelines.wiring import datasets, features, projects, rollouts, training
from pipelines.wiring.collect import collect_all
from tests.e2e.pumps.generate import readings, serial
from tests.free_ports import free_port

PUMPS = Path(__file__).parent / "pumps"
MODEL = "pump_failure"
AS_OF_US = parse_event_time("2026-04-20T00:00:00+00:00")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("pumps")
    include = tmp_path_factory.mktemp("project") / "include"
    for folder in ("datasets", "features", "models"):
        (include / folder).mkdir(parents=True)
    shutil.copy(PUMPS / "pump_failure.yaml", include / "models")
    shutil.copytree(PUMPS / "transforms", include / "transforms")
    readings(include / "data" / "pump_readings.csv")
    port = free_port()
    key = SecretStr("the key of the pumps")
    made = Settings(home=home, include_dir=include, clock="replay", gateway_port=port, gateway_workers=1, pii_key=key)
    made.event_clock().tick(AS_OF_US)
    yield made
    down(made)


def test_one_yaml_file_brings_its_dataset_and_its_view(settings: Settings) -> None:
    checked = projects.check(settings)

    assert checked.mistakes == []
    assert list(checked.specs.datasets) == ["pump_readings"]
    assert names(settings.include_dir, "features") == ["pump_condition"]


def test_the_model_goes_from_raw_rows_to_answers_and_labels(settings: Settings) -> None:
    published = datasets.ingest(settings, "pump_readings", AS_OF_US)
    assert published.rows > 40_000
    features.apply(settings)
    features.refresh(settings, "pump_condition", AS_OF_US)

    trained = training.train(settings, MODEL, AS_OF_US)
    assert not trained.refused, trained.gates

    rollout = rollouts.start(settings, MODEL, trained.release, as_of_us=AS_OF_US, actor="test")
    rollouts.approve(settings, rollout.id, actor="approver", reason="offline gates passed")
    rollouts.advance(settings, rollout.id)
    up(settings, ["gateway"])

    with httpx.Client(base_url=settings.gateway_url, trust_env=False) as client:
        for pump in range(40):
            body = {
                "id": f"ask-{pump}",
                "inputs": [
                    {"name": "pump", "datatype": "BYTES", "shape": [1], "data": [serial(pump)]},
                    {"name": "load", "datatype": "FP64", "shape": [1], "data": [0.6]},
                    {"name": "owner_email", "datatype": "BYTES", "shape": [1], "data": [f"owner{pump}@example.com"]},
                ],
                "parameters": {"event_time": from_us(AS_OF_US).isoformat()},
            }
            answer = client.post(f"/v2/models/{MODEL}/infer", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["parameters"]["release"] == trained.release
            assert answer.json()["parameters"]["degraded"] == ""
            assert 0.0 <= answer.json()["outputs"][0]["data"][0] <= 1.0
        labels = [{"id": f"ask-{pump}", "value": 0.0, "at": AS_OF_US} for pump in range(40)]
        assert client.post(f"/v1/models/{MODEL}/labels", json={"labels": labels}).status_code == 202
        metrics = client.get("/metrics").text

    collect_all(settings)
    lake = DeltaLake(settings.lake)
    assert lake.read("inference/response", ["request_id"], "served").num_rows == 40
    assert lake.read("inference/label", ["request_id"]).num_rows == 40

    # Nothing that was written, on any way from the raw rows to the lake, tells whose pump it was.
    assert holding(settings.root, *(serial(pump) for pump in range(40)), *(f"owner{pump}@" for pump in range(40))) == []
    assert not [pump for pump in range(40) if serial(pump) in metrics]


def holding(home: Path, *texts: str) -> list[str]:
    """The files under a home that hold one of the texts; a Parquet file as its rows, for it is compressed."""
    hits = []
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix == ".parquet":
            data += str(pq.read_table(path, partitioning=None).to_pylist()).encode()
        hits += [f"{path.relative_to(home)}: {text}" for text in texts if text.encode() in data]
    return hits
