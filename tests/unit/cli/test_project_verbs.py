"""`slipway check`, `apply`, `feature` and `new`, as a person uses them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipelines.cli.main import app, main
from pipelines.contracts.clocks import parse_event_time
from pipelines.settings import PROJECT, Settings


@pytest.fixture
def include(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's `include`, which the command line uses with a home of its own."""
    copied = tmp_path / "include"
    shutil.copytree(PROJECT / "include", copied, ignore=shutil.ignore_patterns("__pycache__", "models_invalid"))
    monkeypatch.setenv("SLIPWAY_INCLUDE_DIR", str(copied))
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLIPWAY_CLOCK", "replay")
    return copied


def _run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_check_says_what_there_is_and_exits_0(include: Path) -> None:
    done = _run("check", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["ok"]
    assert answer["datasets"] >= 5
    assert answer["mistakes"] == []


def test_check_lists_every_mistake_with_its_line_and_exits_1(include: Path) -> None:
    shutil.copy(PROJECT / "include" / "models_invalid" / "unknown_view.yaml", include / "models")
    shutil.copy(PROJECT / "include" / "models_invalid" / "wrong_word.yaml", include / "models")
    done = _run("check")
    assert done.exit_code == 1
    assert done.stdout.splitlines() == [
        "include/models/unknown_view.yaml:14: unknown view 'route_punctualty'. Did you mean 'route_punctuality'?",
        "include/models/wrong_word.yaml:7: labels.unlabelled is 'dorp'. Did you mean 'drop'?",
    ]


def test_the_schemas_in_docs_are_those_of_the_specs() -> None:
    from pipelines.spec.schemas import schema_texts

    for name, text in schema_texts().items():
        assert (PROJECT / "docs" / "schema" / name).read_text() == text, "slipway check --write-schemas"


def test_apply_registers_every_view_and_may_be_repeated(include: Path, tmp_path: Path) -> None:
    first = _run("apply", "--json")
    assert first.exit_code == 0, first.output
    applied = json.loads(first.stdout)
    assert len(applied["views"]) == 5
    assert json.loads(_run("apply", "--json").stdout) == applied
    from pipelines.adapters.feast_registry import registered

    known = registered(Settings(home=tmp_path / "home"))
    assert [view.version for view in known] == sorted(applied["views"])
    plane = next(view for view in known if view.tags["view"] == "plane")
    assert plane.ttl_s == 0
    assert "seats" in plane.features


def test_apply_refuses_a_project_with_mistakes(
    include: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(PROJECT / "include" / "models_invalid" / "unknown_view.yaml", include / "models")
    monkeypatch.setattr("sys.argv", ["slipway", "apply"])
    assert main() == 1
    assert "include/models/unknown_view.yaml:14:" in capsys.readouterr().err


def test_feature_list_and_show_tell_versions_freshness_and_users(include: Path) -> None:
    listed: list[dict[str, Any]] = json.loads(_run("feature", "list", "--json").stdout)
    plane = next(view for view in listed if view["name"] == "plane")
    assert plane["version"].startswith("plane__")
    assert "air_time" in plane["used_by"]
    assert plane["freshness"] == {
        "built_through": None,
        "online_through": None,
        "lag_s": None,
        "allowed_s": 30 * 86400.0,
        "fresh": False,
        "state": "never",
        "alert": "SlipwayViewStale",
    }
    assert json.loads(_run("feature", "show", "plane", "--json").stdout) == plane
    assert "seats" in _run("feature", "show", "plane").stdout


def test_lists_fit_a_terminal_and_an_empty_one_says_how_it_is_filled(include: Path) -> None:
    lines = _run("feature", "list").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    listed = json.loads(_run("feature", "list", "--json").stdout)
    assert [line.split()[0] for line in lines[1:]] == [view["version"] for view in listed]
    assert _run("rollout", "list").stdout == "no rollouts yet: slipway rollout start MODEL\n"
    assert _run("release", "list", "plane").exit_code == 2
    assert "model.air_time.train" in _run("release", "list", "--model", "air_time").stdout
    parity = _run("feature", "parity", "air_time").stdout
    assert parity == "no_data: no logged feature values of air_time to compare.\n"


def test_a_dataset_a_view_and_a_model_can_be_started_from_nothing(include: Path, tmp_path: Path) -> None:
    for words in (
        ["dataset", "sales"],
        ["feature", "sales_sum", "--dataset", "sales"],
        ["model", "revenue", "--dataset", "sales"],
        ["model", "compared", "--dataset", "sales", "--rollout", "ab"],
        ["model", "switched", "--dataset", "sales", "--rollout", "blue_green"],
    ):
        assert _run("new", *words).exit_code == 0
    assert _run("new", "model", "odd", "--dataset", "sales", "--rollout", "abc").exit_code == 2
    assert _run("check").exit_code == 0
    hours = [f"{hour},2024-01-{1 + hour // 24:02d}T{hour % 24:02d}:30:00Z,{hour}.5" for hour in range(96)]
    (include / "data" / "sales.csv").write_text("\n".join(["id,happened_at,value", *hours]) + "\n")

    from pipelines.wiring import datasets, features, requests_and_labels

    settings = Settings()
    as_of = parse_event_time("2024-01-04T00:00:00Z")
    assert datasets.ingest(settings, "sales", as_of).rows == 72
    assert features.refresh(settings, "sales_sum", as_of).values > 0
    requests, labels = (
        requests_and_labels.requests(settings, "revenue", as_of),
        requests_and_labels.labels(settings, "revenue", as_of),
    )
    assert requests.num_rows == labels.num_rows == 72
    assert requests.column_names == ["request_id", "event_timestamp", "id", "hour"]
    assert labels.schema.field("label_timestamp").type == pa.timestamp("us", tz="UTC")


def test_new_overwrites_nothing_and_refuses_odd_names(
    include: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (include / "models" / "air_time.yaml").read_text()
    for words in (["model", "air_time", "--dataset", "weather"], ["dataset", "Sales"]):
        monkeypatch.setattr("sys.argv", ["slipway", "new", *words])
        assert main() == 1
    assert (include / "models" / "air_time.yaml").read_text() == before
    assert "already there" in (errors := capsys.readouterr().err)
    assert "lower-case" in errors


def test_the_feast_repository_in_include_is_the_one_that_is_applied() -> None:
    from pipelines.adapters.feast_registry import store_config

    folder = PROJECT / "include" / "feast"
    written = yaml.safe_load((folder / "feature_store.yaml").read_text())
    for holder, key in ((written, "registry"), (written["online_store"], "path")):
        holder[key] = str((folder / holder[key]).resolve())
    assert written == store_config(Settings(home=PROJECT / "var"))
