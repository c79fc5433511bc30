"""Every view of the sample on its whole way: built by its DAG, streamed, served, and held against the lake.

The DAGs build the views on DuckDB. Then the specs change: the datasets that messages can fill become streams, and Spark
computes the views, from the messages of a real broker. What is then in the lake and online has to be what builds on
DuckDB make of the same rows in another home. The gateway answers from it, and a rollout's DAG takes a challenger out of
shadow when what it read is what the lake says, and does not when one value was tampered with.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from pipelines.adapters.airflow_rest import AirflowRest, DagRun, TaskState
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.cli.main import app
from pipelines.contracts.clocks import from_us, parse_event_time
from pipelines.contracts.release import InputField
from pipelines.demo.application import oip_inputs
from pipelines.demo.dag_runs import DagRuns
from pipelines.settings import PROJECT, Settings
from pipelines.spec.loading import load_model, load_view, names
from pipelines.stack import PartStatus, airflow_password, part_environment
from pipelines.wiring import datasets, features, point_in_time, requests_and_labels, rollouts
from tests import streamed_project
from tests.builders import constant_release
from tests.e2e.conftest import EVENT_NOW
from tests.kafka_broker import Broker, broker
from tests.spark import lean_config
from tests.stream_process import Stream
from tests.streamed_project import STREAMED, latest, online
from tests.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL, DAG = "late_arrival", "model.late_arrival.rollout"
VIEWS = names(PROJECT / "include", "features")
HOUR_US = 3_600_000_000
BUILT_US = parse_event_time(EVENT_NOW)
STREAMED_US = BUILT_US + 3 * HOUR_US
DUE_US = STREAMED_US + HOUR_US
"""Everything that was known by `STREAMED_US` is readable: views are published once an hour."""
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def by_builds(settings: Settings, tmp_path_factory: pytest.TempPathFactory, built: None) -> Settings:
    """Another home, in which builds alone have made the views, of the sample itself."""
    home = tmp_path_factory.mktemp("builds")
    (home / "cache").symlink_to(settings.root / "cache")
    made = Settings(home=home, clock="replay")
    for name in names(made.include_dir, "datasets"):
        datasets.ingest(made, name, STREAMED_US)
    for view in VIEWS:
        features.publish(made, features.build(made, view, DUE_US))
        features.materialise(made, view, DUE_US)
    return made


@pytest.fixture(scope="module")
def admin(settings: Settings, stack: list[PartStatus]) -> AirflowRest:
    client = AirflowRest(settings.airflow_url, "admin", airflow_password(settings))
    client.wait_for_dags([DAG, *(f"features.{view}" for view in VIEWS)], timeout_s=PATIENCE_S)
    return client


@pytest.fixture(scope="module")
def built(settings: Settings, admin: AirflowRest) -> None:
    """Datasets and views, by DAG runs: those of the views are started by what those of the datasets tell."""
    features.apply(settings)
    runs = DagRuns(admin, admin, "every-view")
    of_views = [f"features.{view}" for view in VIEWS]
    before = runs.counts(of_views)
    runs.together([f"dataset.{name}" for name in names(settings.include_dir, "datasets")], "first", BUILT_US)
    runs.started_by_assets(of_views, before)


@pytest.fixture(scope="module")
def rows_of_builds(settings: Settings, built: None, by_builds: Settings) -> dict[str, Any]:
    """By view: what the DAGs have put into the lake, and what builds elsewhere have, of the same stamps."""
    until = pa.scalar(from_us(BUILT_US), pa.timestamp("us", "UTC"))
    found = {}
    for view in VIEWS:
        table = features.table_of(load_view(settings.include_dir, view).feast_name(settings.include_dir))
        of_dag, elsewhere = (
            DeltaLake(home.lake).read(table).drop_columns(["created_timestamp"]) for home in (settings, by_builds)
        )
        order = [("event_timestamp", "ascending"), *((key, "ascending") for key in of_dag.column_names[:2])]
        past = elsewhere.filter(pc.less_equal(elsewhere.column("event_timestamp"), until))
        found[view] = (of_dag.sort_by(order).to_pylist(), past.sort_by(order).to_pylist())
    return found


@pytest.fixture(scope="module")
def streamed(
    settings: Settings, rows_of_builds: dict[str, Any], by_builds: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The views go on as streams on Spark, to the last message."""
    folder = tmp_path_factory.mktemp("stream")
    streamed_project.turn(settings.include_dir, engine="spark")
    with broker(folder / "kafka") as kafka:
        on_kafka = settings.model_copy(
            update={"kafka": kafka.servers, "spark_config": lean_config(folder), "spark_master": "local[1]"}
        )
        for dataset in STREAMED:
            _send(kafka, dataset, by_builds)
        stream = Stream(on_kafka, folder / "stream.log")
        try:

            def arrived() -> bool:
                assert stream.running(), stream.log.read_text()[-3000:]
                time.sleep(0.5)  # each look reads tables
                return all(latest(settings, view) == latest(by_builds, view) for view in VIEWS)

            wait_until(arrived, "the last rows of every view", PATIENCE_S)
            assert stream.end() == 0, stream.log.read_text()[-3000:]
        finally:
            if stream.running():
                stream.kill()
    settings.event_clock().tick(DUE_US)


def _send(kafka: Broker, dataset: str, source: Settings) -> None:
    """What became known of a dataset behind the last build, as a producer would have told it then."""
    after = f"known_at > make_timestamptz({BUILT_US})"
    rows = DeltaLake(source.lake).read(datasets.table_of(dataset), where=after).sort_by("known_at")
    times = rows.column("known_at").cast(pa.int64()).to_pylist()
    assert times, dataset
    messages = zip(map(json.dumps, streamed_project.objects(rows)), times, strict=True)
    kafka.make_topic(dataset)
    kafka.produce(dataset, [(text.encode(), time_us) for text, time_us in messages])


@pytest.mark.parametrize("view", VIEWS)
def test_the_dags_build_what_builds_elsewhere_make(view: str, rows_of_builds: dict[str, Any]) -> None:
    of_dag, elsewhere = rows_of_builds[view]
    assert len(of_dag) > 100
    assert of_dag == elsewhere


@pytest.mark.proof
@pytest.mark.parametrize("view", VIEWS)
def test_streams_on_spark_go_on_to_what_builds_on_duckdb_make(
    view: str, settings: Settings, by_builds: Settings, streamed: None
) -> None:
    made, expected = latest(settings, view), latest(by_builds, view)
    assert made == expected
    assert max(row["event_timestamp"] for row in made) == from_us(DUE_US)
    assert online(settings, view) == online(by_builds, view)


# --- served ---------------------------------------------------------------------------------------------------------


class Served:
    """Rollouts of releases that read every feature of every view, and the requests of one hour."""

    def __init__(self, settings: Settings, admin: AirflowRest) -> None:
        self.settings, self.admin = settings, admin
        self.spec = load_model(settings.include_dir, MODEL)
        wanted = requests_and_labels.requests(settings, MODEL, DUE_US + HOUR_US).to_pylist()
        self.asks = [row for row in wanted if from_us(DUE_US) <= row["event_timestamp"] < from_us(DUE_US + HOUR_US)]
        first = rollouts.start(settings, MODEL, self.release(0.3, "1.0.0"), actor="test")
        rollouts.approve(settings, first.id, "approver", "offline gates passed")
        rollouts.advance(settings, first.id)

    def release(self, score: float, semver: str) -> str:
        inputs = [
            InputField(name=name, datatype=one.datatype, required=one.required)
            for name, one in self.spec.inputs.items()
        ]
        views = [
            msgspec.structs.replace(pin, features=list(load_view(self.settings.include_dir, use.view).features))
            for pin, use in zip(point_in_time.pins(self.settings, MODEL), self.spec.views, strict=True)
        ]
        inputs.append(InputField(name="x", datatype="FP64", required=False))
        return constant_release(self.settings.releases, MODEL, score, semver=semver, inputs=inputs, views=views)

    def challenge(self, name: str, score: float) -> str:
        """A rollout's DAG run, as far as its first gate; the rollout's id, once the gateway follows it."""
        release = self.release(score, "1.1.0")
        self.admin.trigger(DAG, run_id=name, conf={"challenger": release})
        self.until(name, "gate_shadow", "deferred")
        routes = f"{self.settings.gateway_url}/v1/routes"
        wait_until(lambda: release in httpx.get(routes).text, "the gateway follows the rollout", PATIENCE_S)
        return rollouts.list(self.settings, MODEL)[-1].id

    def until(self, run_id: str, task_id: str, state: str) -> None:
        def reached(_: DagRun, tasks: Sequence[TaskState]) -> bool:
            return any(task.task_id == task_id and task.state == state for task in tasks)

        run = self.admin.wait(DAG, run_id, timeout_s=PATIENCE_S, until=reached)
        assert reached(run, self.admin.tasks(DAG, run_id)), (run, rollouts.list(self.settings, MODEL)[-1])

    def ask(self, part: slice) -> None:
        """Ask the gateway for a part of the hour's requests."""
        datatypes = {name: one.datatype for name, one in self.spec.inputs.items()}
        for row in self.asks[part]:
            body = {
                "id": row["request_id"],
                "inputs": oip_inputs({name: row[name] for name in datatypes}, datatypes),
                "parameters": {"event_time": round(row["event_timestamp"].timestamp()) * 1_000_000},
            }
            answer = httpx.post(f"{self.settings.gateway_url}/v2/models/{MODEL}/infer", json=body, timeout=30)
            assert answer.status_code == httpx.codes.OK, answer.text
            assert "unavailable" not in answer.json()["parameters"]["degraded"]

    def slipway(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [*arguments], env=part_environment(self.settings))
        return done.exit_code, done.stdout

    def parity(self, rollout: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """What `slipway feature parity` says: its exit code, and the counts of each view by name."""
        code, text = self.slipway("feature", "parity", MODEL, "--rollout", rollout, "--json")
        (report,) = json.loads(text)
        return code, {one["view"].rpartition("__")[0] or one["view"]: one for one in report["views"]}

    def end(self, rollout: str) -> None:
        rollouts.rollback(self.settings, rollout, "approver", "the test is over")
        rollouts.advance(self.settings, rollout)


@pytest.fixture(scope="module")
def served(settings: Settings, admin: AirflowRest, streamed: None) -> Served:
    return Served(settings, admin)


def wrong(view: dict[str, Any]) -> dict[str, int]:
    return {kind: view[kind] for kind in ("mismatched", "missing", "extra", "lagging", "unread") if view[kind]}


@pytest.mark.proof
def test_a_challenger_leaves_shadow_when_all_it_read_is_what_the_lake_says_and_not_with_one_wrong_value(
    served: Served,
) -> None:
    settings = served.settings
    rollout = served.challenge("right", 0.31)
    served.ask(slice(0, None, 2))
    served.until("right", "gate_canary_50", "deferred")
    decision = next(one for one in rollouts.show(settings, rollout)["decisions"] if one.get("conditions"))
    assert (decision["stage"], decision["next_stage"]) == ("shadow", "canary_50")
    assert sum(one["condition"] == "freshness" for one in decision["conditions"]) == len(VIEWS)
    code, views = served.parity(rollout)
    assert code == 0
    assert set(views) == {*VIEWS, "inputs"}
    assert {name: wrong(view) for name, view in views.items() if wrong(view)} == {}
    for name in VIEWS:
        assert {one["feature"] for one in views[name]["features"] if one["compared"] >= 15} == set(
            load_view(settings.include_dir, name).features
        ), name
    served.end(rollout)

    tamper(settings, "weather_at_origin", "temp", 4.0)
    rollout = served.challenge("wrong", 0.32)
    served.ask(slice(1, None, 2))
    served.until("wrong", "decide", "awaiting_input")
    shown = rollouts.show(settings, rollout)
    assert (shown["status"], shown["stage"], shown["exposed"]) == ("held", "shadow", 0)
    assert "weather_at_origin" in shown["decisions"][-1]["reason"]
    assert "temp: request" in shown["decisions"][-1]["reason"]
    code, views = served.parity(rollout)
    assert code == 1
    found = {name: wrong(view) for name, view in views.items() if wrong(view)}
    assert found == {"weather_at_origin": {"mismatched": views["weather_at_origin"]["rows"]}}
    served.end(rollout)


def tamper(settings: Settings, view: str, feature: str, value: float) -> None:
    """Another writer puts a value into the online store, for every key."""
    version = load_view(settings.include_dir, view).feast_name(settings.include_dir)
    file: Path = settings.feast_dir / "online_store.db"
    with sqlite3.connect(file) as connection:
        message = struct.pack("<Bd", 0x29, value)
        changed = connection.execute(
            f'UPDATE "slipway_{version}" SET value = ? WHERE feature_name = ?', (message, feature)
        )
        assert changed.rowcount > 0
