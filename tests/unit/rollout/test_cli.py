"""`slipway rollout` as a person uses it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.main import main
from pipelines.contracts.errors import TerminalError
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.builders import constant_release
from tests.unit.rollout.examples import PLAN


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path))
    return Settings(home=tmp_path)


@pytest.fixture
def slipway(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["slipway", *words])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def first(settings: Settings) -> str:
    release = constant_release(settings.releases, "m", 0.3)
    return rollouts.start(settings, "m", release, actor="test", plan=PLAN).id


def test_a_first_champion_is_listed_explained_approved_and_shown(first: str, settings: Settings, slipway: Any) -> None:
    code, out, _ = slipway("rollout", "list", "--json")
    assert (code, [row["stage"] for row in json.loads(out)]) == (0, ["approval"])
    code, out, _ = slipway("rollout", "explain", first, "--if", "approve", "--actor", "anna")
    assert code == 0
    assert "set route of m" in out
    assert rollouts.load(settings, first).status == "running", "explaining does nothing"
    code, out, _ = slipway("rollout", "approve", first, "--actor", "anna", "--reason", "gates passed", "--json")
    assert (code, json.loads(out)["status"]) == (0, "promoted")
    code, out, _ = slipway("rollout", "show", first, "--json")
    approved = json.loads(out)["decisions"][-1]
    assert (approved["actor"], approved["reason"], approved["id"]) == ("anna", "anna: gates passed", "m:2")
    assert 0 <= approved["seconds_to_route"] < 5
    code, out, _ = slipway("rollout", "show", first)
    assert code == 0
    assert "anna: gates passed" in out


def test_what_is_not_allowed_is_one_message_and_exit_1(first: str, slipway: Any) -> None:
    code, out, err = slipway("rollout", "approve", first, "--actor", "mallory")
    assert (code, out) == (1, "")
    assert err == f"slipway: approve {first}; got actor mallory; expected one of ['anna', 'ben']\n"


def test_an_unknown_rollout_is_answered_with_the_ones_there_are(first: str, slipway: Any) -> None:
    code, _, err = slipway("rollout", "show", "m-r9")
    assert code == 1
    assert f"got m-r9; expected ['{first}']" in err


def test_wrong_usage_is_exit_2(slipway: Any) -> None:
    assert slipway("rollout", "approve")[0] == 2
    assert slipway("rollout", "explain", "m-r1", "--if", "ignore")[0] == 2


def test_a_second_challenger_waits_and_a_third_takes_its_place(first: str, settings: Settings, slipway: Any) -> None:
    slipway("rollout", "approve", first, "--actor", "anna")
    releases = [constant_release(settings.releases, "m", 0.3 + n / 10, semver=f"1.{n}.0") for n in (1, 2, 3)]
    ids = [rollouts.start(settings, "m", release, actor="test", plan=PLAN).id for release in releases]
    _, out, _ = slipway("rollout", "list", "m", "--json")
    assert [row["status"] for row in json.loads(out)] == ["promoted", "running", "replaced", "waiting"]
    slipway("rollout", "rollback", ids[0], "--actor", "anna")
    _, out, _ = slipway("rollout", "list", "m", "--json")
    assert [row["status"] for row in json.loads(out)] == ["promoted", "rolled_back", "replaced", "running"]
    assert rollouts.load(settings, ids[2]).champion == rollouts.load(settings, first).challenger


def test_starting_a_release_that_is_under_way_returns_its_rollout(first: str, settings: Settings) -> None:
    release = rollouts.load(settings, first).challenger
    assert rollouts.start(settings, "m", release, actor="again", plan=PLAN).id == first


def test_the_champion_is_no_challenger_of_its_own(first: str, settings: Settings, slipway: Any) -> None:
    slipway("rollout", "approve", first, "--actor", "anna")
    champion = rollouts.load(settings, first).challenger
    with pytest.raises(TerminalError, match="which is its champion; expected another release"):
        rollouts.start(settings, "m", champion, actor="test", plan=PLAN)
    assert len(rollouts.list(settings, "m")) == 1
