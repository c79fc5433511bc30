"""A subject is erased: nothing tells of it any more, the evidence holds all the same, and it does not come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import msgspec
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import open_lake
from pipelines.adapters.erasure_record import ERASURES
from pipelines.adapters.feast_online import open_online
from pipelines.adapters.subject_rows import ASSIGNMENT, RESPONSE
from pipelines.cli.main import app
from pipelines.collect import quarantine
from pipelines.contracts.errors import NotFoundError, SpecError, TransientError
from pipelines.features.online_layout import keys_of
from pipelines.training import training_set
from pipelines.wiring import corrections, datasets, erasure, features
from pipelines.wiring.collect import Collector, collect_all, verify_log
from pipelines.wiring.record_copy import copied
from pipelines.wiring.rollout_replay import replay
from pipelines.wiring.rollout_report import audit
from tests.contract.pump_park import AS_OF_US, LATER_US, MODEL, SUBJECT, Park, hash_of
from tests.contract.test_lake_care import says
from tests.e2e.test_third_model import holding
from tests.s3_server import S3Server
from tests.s3_tables import lake_on_s3

REASON = "request 2026-17"


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Park:
    folder = tmp_path_factory.mktemp("park")
    return Park(folder / "home", folder / "include")


@pytest.fixture
def park(template: Park, tmp_path: Path) -> Park:
    """An installation of its own."""
    shutil.copytree(template.settings.home.parent, tmp_path / "park")
    made = Park.__new__(Park)
    made.__dict__ |= template.__dict__
    made.settings = template.settings.model_copy(
        update={"home": tmp_path / "park" / "home", "include_dir": tmp_path / "park" / "include"}
    )
    made.worker = copy(template.worker)
    made.worker.path = made.settings.bus / template.worker.path.relative_to(template.settings.bus)
    return made


@pytest.fixture
def on_s3(park: Park, s3: S3Server) -> Iterator[Park]:
    """The same with its lake on S3."""
    with lake_on_s3(s3) as lake:
        filesystem, path = lake.files("")
        fs.copy_files(str(park.settings.lake), path, destination_filesystem=filesystem)
        shutil.rmtree(park.settings.lake)
        lies = {"lake_uri": lake.root, "lake_endpoint": s3.endpoint}
        park.settings = park.settings.model_copy(update=lies)
        yield park


def erase(park: Park) -> erasure.Erasure:
    made = erasure.erase(park.settings, erasure.subject_of(park.settings, "pump", [SUBJECT]), REASON, "anna")
    assert made is not None
    return made


def pumps_online(park: Park) -> set[object]:
    with open_online(park.settings) as online:
        return {keys_of(key)["pump"] for key in online.entities()}


def test_nothing_tells_of_the_subject_any_more_but_what_is_only_appended_to(park: Park) -> None:
    settings, lake = park.settings, open_lake(park.settings)
    others = {hash_of(pump) for pump in (0, 1, 3, 4)}
    before = lake.version("datasets/pump_readings")
    done = erase(park)

    told = {path.partition(": ")[0].partition("/")[0] for path in holding(settings.root, hash_of(2), SUBJECT)}
    assert told == {"bus"}
    assert pumps_online(park) == others
    for table in ("datasets/pump_readings", f"features/{park.version}"):
        assert set(lake.read(table, ["pump"]).column("pump").to_pylist()) == others
        assert lake.applied(table, "ingest" if table.startswith("d") else "build") == AS_OF_US
    with pytest.raises(NotFoundError):
        lake.read("datasets/pump_readings", version=before)
    assert lake.read("quarantine/pump_readings").num_rows == 1

    rows, _ = training_set.read(settings.training_sets, park.training_set)
    assert set(rows.column("pump").to_pylist()) == {None, *others}
    assert rows.column("label").null_count == 0

    assert done.decided.online == 1
    assert done.decided.log == {MODEL: {"": 8, park.rollout: 10}}
    assert [one.digest for one in done.decided.training_sets] == [park.training_set]
    assert [one.digest for one in done.decided.releases] == [park.champion]
    assert done.done is not None
    kept = {one.what.split()[0]: one.until for one in done.done.remaining}
    assert set(kept) == {"segments", "file", "release"}
    assert kept["segments"]


def test_evidence_record_and_completeness_hold_and_say_what_was_erased(park: Park) -> None:
    before = [one.differences for one in replay(park.settings)]
    erase(park)
    found = {one.rollout_id: one for one in replay(park.settings)}
    assert [one.differences for one in found.values()] == before == [[], []]
    gone = "10 rows erased by erasure-1: their payload is gone, their evidence is not"
    read = "138 rows it may have read were erased by erasure-1"
    assert found[park.rollout].erased == [gone, f"the backtest stands as it is stored: {read}"]
    again = {one.rollout_id: one for one in replay(park.settings, lake_only=True)}
    assert [one.differences for one in again.values()] == [[], []]
    assert again[park.rollout].erased[0] == gone
    assert all(report.whole for report in verify_log(park.settings))
    assert not any(audit(park.settings).values())
    with pytest.raises(Exception, match="append-only"), control_db(park.settings).write() as connection:
        connection.exec_driver_sql("DELETE FROM decision WHERE model = '*erasures'")

    lake = open_lake(park.settings)
    asked = lake.read(ASSIGNMENT, where="inputs IS NULL").to_pylist()
    assert {row["unit"] for row in asked} == {"erasure-1"}
    assert len(asked) == 18
    answers = lake.read(RESPONSE, where="features IS NULL AND outputs IS NULL").to_pylist()
    assert len(answers) == 28
    assert {row["score"] for row in answers} == {"[0.3]"}


def test_it_does_not_come_back_from_its_source_nor_from_the_gateway(park: Park) -> None:
    settings, lake = park.settings, open_lake(park.settings)
    with Collecting(park) as collector:  # its tables are open while they are swept
        erase(park)
        park.ask(100, 2)
        park.ask(101, 1)
        with pytest.raises(TransientError):
            collector.once()
    collect_all(settings)
    inputs = {row["request_id"]: row["inputs"] for row in lake.read(ASSIGNMENT).to_pylist()}
    assert inputs["ask-100"] is None
    assert inputs["ask-101"] is not None
    assert lake.read(RESPONSE, where="request_id = 'ask-100' AND features IS NULL").num_rows == 2
    assert [one.differences for one in replay(settings)] == [[], []]

    published = datasets.ingest(settings, "pump_readings", LATER_US)
    assert published.rows == 4 * 12
    (line,) = lake.read("quarantine/pump_readings", where=f"run = '{park.later()}'").to_pylist()
    assert line["row"] is None
    assert line["reason"] == "12 rows whose subject was erased (erasure-1); they are not kept"
    corrections.amend(settings, "pump_condition", LATER_US)
    features.refresh(settings, "pump_condition", LATER_US)
    assert hash_of(2) not in lake.read(f"features/{park.version}").column("pump").to_pylist()
    assert hash_of(2) not in pumps_online(park)
    assert erasure.erase(settings, erasure.subject_of(settings, "pump", [SUBJECT]), REASON, "anna") is None


def test_what_tells_of_the_subject_leaves_the_logs_quarantine_and_no_more_of_it_comes_in(park: Park) -> None:
    settings, lake = park.settings, open_lake(park.settings)
    about = {name: {"kind": "weather", "model": MODEL, "unit": hash_of(pump)} for name, pump in (("it", 2), ("no", 1))}
    for payload in (*map(msgspec.msgpack.encode, about.values()), b"\xff no event of " + hash_of(2).encode()):
        park.worker.frame(payload)
    collect_all(settings)
    erase(park)
    asked = {"inputs": {"pump": [hash_of(2)]}} | about["no"]
    for payload in ({"inputs": {"pump": 2}} | about["no"], asked, about["it"], about["no"]):
        park.worker.frame(msgspec.msgpack.encode(payload))
    collect_all(settings)

    rows = lake.read(quarantine.TABLE).sort_by("n")
    kept = [None, about["no"], None, None, None, None, about["no"]]
    payloads = rows.column("payload").to_pylist()
    assert [payload and msgspec.msgpack.decode(payload) for payload in payloads] == kept
    assert [text and json.loads(text) for text in rows.column("row").to_pylist()] == kept
    told = {path.partition(": ")[0].partition("/")[0] for path in holding(settings.root, hash_of(2), SUBJECT)}
    assert told == {"bus"}
    (report,) = verify_log(settings)
    assert (report.whole, sum(report.quarantined.values())) == (True, 7)


class Collecting:
    """A collector that has its tables open."""

    def __init__(self, park: Park) -> None:
        self.collector = Collector(park.settings)
        park.ask(99, 0)
        self.collector.once()

    def __enter__(self) -> Collector:
        return self.collector

    def __exit__(self, *_: object) -> None:
        self.collector.close()


def test_a_process_that_dies_before_any_step_is_finished_by_asking_again(park: Park) -> None:
    died: list[str] = []

    def step(name: str) -> None:
        if name not in died:
            died.append(name)
            raise Killed

    subject = erasure.subject_of(park.settings, "pump", [SUBJECT])
    ended = False
    while not ended:
        try:
            erasure.erase(park.settings, subject, REASON, "anna", step)
            ended = True
        except Killed:
            continue
    assert {"decide", "online", "staged", f"log of {MODEL}", f"sweep {RESPONSE}", "done", "copy"} <= set(died)
    assert len(died) > 12
    told = {path.partition(": ")[0].partition("/")[0] for path in holding(park.settings.root, hash_of(2), SUBJECT)}
    assert told == {"bus"}
    (only,) = erasure.erasures(park.settings)
    assert only.done is not None
    assert len(copied(park.settings)[ERASURES]) == 2, "decided and done, once each"
    assert not any(audit(park.settings).values())
    assert [one.differences for one in replay(park.settings)] == [[], []]


def test_the_commands_show_first_then_erase_and_list_what_was_touched(
    park: Park, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = park.settings
    for name, value in {"HOME": settings.home, "INCLUDE_DIR": settings.include_dir, "CLOCK": "replay"}.items():
        monkeypatch.setenv(f"SLIPWAY_{name}", str(value))
    monkeypatch.setenv("SLIPWAY_PII_KEY", settings.pii_key.get_secret_value())
    run = CliRunner().invoke
    asked = ["lake", "erase", "--entity", "pump", "--key", SUBJECT]
    shown = json.loads(run(app, [*asked, "--dry-run", "--json"]).output)
    assert shown["tables"] == {
        "datasets/pump_readings": 120,
        f"features/{park.version}": 120,
        "quarantine/pump_readings": 1,
    }
    assert "inference log" in run(app, [*asked, "--dry-run"]).output
    assert erasure.erasures(settings) == []
    assert run(app, asked).exit_code == 2, "a reason is asked for"
    assert isinstance(run(app, [*asked, "--reason", f"asked by {SUBJECT}"]).exception, SpecError)

    told = run(app, [*asked, "--reason", REASON, "--actor", "anna"])
    assert told.exit_code == 0, told.output
    assert f"release {MODEL} 1.0.0" in told.output
    assert "stays until" in told.output
    assert "Nothing of this pump is left" in run(app, [*asked, "--reason", REASON]).output
    (listed,) = json.loads(run(app, ["lake", "erasures", "--json"]).output)
    assert (listed["id"], listed["decided"]["reason"]) == ("erasure-1", REASON)
    assert "touched by erasure-1" in run(app, ["release", "list"]).output
    assert "erasure-1" in run(app, ["release", "show", "1.0.0"]).output
    assert "the record of erasures: holds" in run(app, ["audit", "verify"]).output
    assert isinstance(
        run(app, ["lake", "erase", "--entity", "pmp", "--key", "1", "--dry-run"]).exception, NotFoundError
    )


def test_the_same_on_s3(on_s3: Park) -> None:
    lake = open_lake(on_s3.settings)
    tables = lake.tables()
    erase(on_s3)
    assert not [table for table in tables if says(lake, table, hash_of(2).encode())]
    assert pumps_online(on_s3) == {hash_of(pump) for pump in (0, 1, 3, 4)}
    assert [one.differences for one in replay(on_s3.settings)] == [[], []]
