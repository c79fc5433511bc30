"""`slipway audit replay`: stored evidence and recorded verdicts against the inference log."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.cli import audit
from pipelines.contracts.errors import ContractError
from pipelines.rollout.record import entry, verify
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from pipelines.wiring.collect import collect_once
from pipelines.wiring.record_copy import copied, copy
from pipelines.wiring.rollout_replay import replay, states
from tests.unit.collect.installation import Installation
from tests.unit.collect.traffic import Worker


@pytest.fixture(scope="module")
def withdrawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which a rollout left its shadow and was rolled back in its canary, in many batches."""
    installation = Installation(tmp_path_factory.mktemp("home"))
    settings, rng = installation.settings, random.Random(5)
    worker = Worker(installation.bus)
    sent = 0
    while rollouts.load(settings, installation.rollout).slot == "running":
        canary = installation.route.mode == "split"
        for _ in range(130):
            fails = frozenset({"challenger"}) if canary and rng.random() < 0.4 else frozenset[str]()
            worker.request(
                installation.route, f"q{sent}", fails=fails, label=float(rng.random() < 0.3), score=rng.random()
            )
            sent += 1
        collect_once(settings)
        rollouts.look(settings, installation.rollout)
        rollouts.advance(settings, installation.rollout)
        assert sent < 5000
    worker.request(installation.route, "late", label=1.0)  # behind its end: no evidence
    collect_once(settings)
    assert rollouts.load(settings, installation.rollout).status == "rolled_back"
    return settings.root


@pytest.fixture
def settings(withdrawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    shutil.copytree(withdrawn, tmp_path / "home")
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    return Settings(home=tmp_path / "home")


def tampered(settings: Settings, *statements: str) -> None:
    """Runs SQL behind the product's back: the triggers that keep the record are dropped first."""
    with sqlite3.connect(settings.root / "control.db") as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            assert connection.execute(statement).rowcount == 1


def differences(settings: Settings) -> list[str]:
    """Of the second rollout; the first has no champion to compare with and must always hold."""
    first, second = replay(settings, "m")
    assert first.differences == []
    return second.differences


def test_evidence_and_every_verdict_come_out_byte_for_byte(settings: Settings) -> None:
    first, second = replay(settings)
    assert (first.rollout_id, first.batches, second.rollout_id) == ("m-r1", 0, "m-r2")
    assert (first.differences, second.differences) == ([], [])
    shown = rollouts.show(settings, "m-r2")
    assert second.decisions == len([each for each in shown["decisions"] if each["kind"] != "observed"])
    assert second.batches > 5
    assert shown["decisions"][-1]["verdicts"], "the rollback has verdicts to compare"
    done = CliRunner().invoke(audit.app, ["replay"])
    assert done.exit_code == 0, done.output
    assert "m-r2: the same bytes" in done.output


def test_other_cuts_of_the_log_end_in_the_same_evidence(settings: Settings) -> None:
    rollout = rollouts.load(settings, "m-r2")
    *_, whole = states(settings, rollout)
    *_, cut = states(settings, rollout, cuts=7)
    assert cut.evidence == whole.evidence
    assert cut.counts == whole.counts


def test_a_changed_verdict_is_named_with_both_values(settings: Settings) -> None:
    last = rollouts.show(settings, "m-r2")["decisions"][-1]
    tampered(
        settings,
        "UPDATE decision SET body = replace(body, '\"champion\":0.0,', '\"champion\":0.25,') "
        f"WHERE model = 'm' AND n = {last['id'].split(':')[1]}",
    )
    found = differences(settings)
    assert f"{last['id']}: error_rate champion: recorded 0.25, computed again 0.0" in found
    done = CliRunner().invoke(audit.app, ["replay", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)[1]["differences"] == found


def test_changed_evidence_and_counts_are_found(settings: Settings) -> None:
    tampered(
        settings,
        'UPDATE evidence SET document = replace(document, \'"requests","shadow",\', \'"requests","shadow",1\'), '
        "counts = replace(counts, '\"exposed\":', '\"exposed\":1') WHERE rollout_id = 'm-r2' AND part = 'live'",
    )
    assert differences(settings) == [
        "the stored evidence is not what the inference log folds to behind any of its batches",
        "the stored counts are not those of the inference log",
    ]


def test_a_log_that_lost_answers_no_longer_gives_the_decisions_evidence(settings: Settings) -> None:
    from deltalake import DeltaTable

    DeltaTable(settings.lake / "inference" / "response").delete("arm = 'challenger' AND request_id = 'q7'")
    found = differences(settings)
    assert "the stored evidence is not what the inference log folds to behind any of its batches" in found
    assert any("is not what the log folds to behind any batch" in each for each in found)


def test_a_plan_changed_behind_the_record_is_found(settings: Settings) -> None:
    tampered(
        settings,
        "UPDATE rollout SET document = replace(document, '\"promote_margin_abs\":0.02', '\"promote_margin_abs\":0.2') "
        "WHERE id = 'm-r2'",
    )
    assert "the plan is not what its digest names" in differences(settings)


def test_a_record_rewritten_whole_is_found_by_its_copy_in_the_lake(settings: Settings) -> None:
    assert rollouts.audit(settings) == {"m": []}
    store = rollouts.rollout_store(settings)
    entries = store.entries("m")
    assert copied(settings)["m"] == entries
    forged = entry("m", entries[-2], json.loads(entries[-1].body) | {"code": "another"})
    tampered(
        settings,
        f"UPDATE decision SET body = '{forged.body.replace(chr(39), chr(39) * 2)}', hash = '{forged.hash}' "
        f"WHERE model = 'm' AND n = {forged.n}",
    )
    assert verify(store.entries("m")) == [], "the chain itself is whole"
    (fault,) = rollouts.audit(settings)["m"]
    assert fault == (
        f"{forged.id}: its copy in the lake has hash {entries[-1].hash[:12]}, the record {forged.hash[:12]}"
    )


def test_a_record_that_lost_its_end_is_found_by_its_copy_in_the_lake(settings: Settings) -> None:
    last = rollouts.rollout_store(settings).entries("m")[-1]
    tampered(settings, f"DELETE FROM decision WHERE model = 'm' AND n = {last.n}")
    (fault,) = rollouts.audit(settings)["m"]
    assert fault.endswith("the record has no such entry")


def test_a_lake_that_cannot_be_written_delays_no_decision(settings: Settings) -> None:
    shutil.rmtree(settings.lake / "record")
    (settings.lake / "record").touch()
    store = rollouts.rollout_store(settings)
    assert copy(settings, store, "m") == 0
    (settings.lake / "record").unlink()
    assert copy(settings, store, "m") == len(store.entries("m"))
    assert copy(settings, store, "m") == 0, "once"


def test_the_lake_alone_gives_the_same_bytes_and_finds_what_was_changed_in_it(settings: Settings) -> None:
    from deltalake import DeltaTable

    whole = replay(settings)
    (settings.root / "control.db").unlink()
    again = replay(settings, lake_only=True)
    assert [(one.rollout_id, one.decisions, one.batches) for one in again] == [
        (one.rollout_id, one.decisions, one.batches) for one in whole
    ]
    assert [one.differences for one in again] == [[], []]
    done = CliRunner().invoke(audit.app, ["replay", "--lake-only"])
    assert done.exit_code == 0, done.output
    assert not (settings.root / "control.db").exists(), "it has not been asked for"

    DeltaTable(settings.lake / "inference" / "response").delete("arm = 'challenger' AND request_id = 'q7'")
    assert any("is not what the log folds to" in each for each in replay(settings, "m", lake_only=True)[1].differences)
    DeltaTable(settings.lake / "record" / "decisions").update(predicate="n = 3", new_values={"body": "{}"})
    with pytest.raises(ContractError, match="m:3: its body or number is not what its hash was taken of"):
        replay(settings, lake_only=True)
