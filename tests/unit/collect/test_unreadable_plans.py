"""A rollout whose plan was frozen by other code, and cannot be read by this one, stops nothing but itself."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from pipelines.adapters import control_schema as schema
from pipelines.adapters.control_db import control_db
from pipelines.cli.main import app
from pipelines.contracts.routes import Route
from pipelines.settings import Settings
from pipelines.stats.evidence import Evidence
from pipelines.wiring import rollouts
from pipelines.wiring.collect import Collector, collect_all
from tests.builders import constant_release
from tests.unit.collect.installation import PLAN, Installation
from tests.unit.collect.traffic import Worker

Change = Callable[[dict[str, Any]], None]


class Site:
    """An installation in which rollouts of two models run: `m-r2`, and `other-r2`."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home)
        self.worker = Worker(self.settings.bus)

    def route(self, model: str) -> Route:
        found = control_db(self.settings).route(model)
        assert found is not None
        return found

    def change(self, change: Change, rollout_id: str = "m-r2") -> None:
        """Let a rollout have been written by other code."""
        table = schema.rollout
        mine = table.c.id == rollout_id
        with control_db(self.settings).write() as connection:
            document = json.loads(connection.execute(sa.select(table.c.document).where(mine)).scalar_one())
            change(document)
            connection.execute(sa.update(table).where(mine).values(document=json.dumps(document)))

    def requests(self, begin: int, count: int, fails: frozenset[str] = frozenset()) -> None:
        for number in range(begin, begin + count):
            for model in ("m", "other"):
                self.worker.request(self.route(model), f"q{number}", fails=fails)

    def evidence(self, rollout_id: str) -> str:
        rows = rollouts.rollout_store(self.settings).view(rollout_id).evidence
        return next((row.document for row in rows if row.part == "live"), "")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("template")
    settings = Installation(home).settings
    for score, semver in ((0.3, "1.0.0"), (0.31, "1.1.0")):
        release = constant_release(settings.releases, "other", score, semver=semver)
        begun = rollouts.start(settings, "other", release, actor="test", plan=PLAN)
        if semver == "1.0.0":
            rollouts.approve(settings, begun.id, "anna")
        rollouts.advance(settings, begun.id)
    return home


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Site:
    shutil.copytree(template, tmp_path / "home")
    return Site(tmp_path / "home")


def a_metric_that_is_gone(document: dict[str, Any]) -> None:
    document["plan"]["policy"]["metrics"][0]["kind"] = "mann_whitney"


def a_state_that_is_gone(document: dict[str, Any]) -> None:
    document["status"] = "resting"


UNREADABLE = {
    a_metric_that_is_gone: r"plan \w{12} of rollout m-r2; got one that this version cannot read \(.*mann_whitney",
    a_state_that_is_gone: r"rollout m-r2; got a state that this version cannot read \(.*resting",
}


@pytest.mark.parametrize("change", UNREADABLE, ids=lambda change: change.__name__)
def test_it_stands_still_with_the_reason_and_the_other_rollouts_go_on(
    site: Site, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.requests(0, 10)
    collect_all(site.settings)
    site.change(change)
    site.requests(10, 10)
    collector = Collector(site.settings)
    assert collector.once().events == 60
    ((name, reason),) = collector.problems().items()
    assert name == "m-r2"
    assert re.match(UNREADABLE[change], reason)
    assert "start it again" in reason
    assert counted(site.evidence("other-r2"), "requests") == 20

    monkeypatch.setenv("SLIPWAY_HOME", str(site.settings.root))
    listed = CliRunner().invoke(app, ["rollout", "list"])
    assert (listed.exit_code, "other-r2" in listed.output) == (0, True)
    assert "other-r2: the same bytes" in (told := CliRunner().invoke(app, ["audit", "replay"])).output
    assert "m-r2: DIFFERS" in told.output
    assert re.search(UNREADABLE[change], told.output)


@pytest.mark.parametrize("change", UNREADABLE, ids=lambda change: change.__name__)
def test_harm_and_overrides_of_the_other_rollouts_are_acted_upon(site: Site, change: Change) -> None:
    site.change(change)
    site.requests(0, 60, fails=frozenset({"challenger"}))
    collect_all(site.settings)
    assert rollouts.load(site.settings, "other-r2").status == "rolled_back"
    assert site.route("m").rollout_id == "m-r2", "nobody knows what is in it: it stays where it is"

    again = constant_release(site.settings.releases, "other", 0.32, semver="1.2.0")
    begun = rollouts.start(site.settings, "other", again, actor="test", plan=PLAN)
    rollouts.advance(site.settings, begun.id)
    assert begun.status == "running"
    site.worker.override(site.route("m"))
    site.worker.override(site.route("other"))
    collect_all(site.settings)
    assert rollouts.load(site.settings, begun.id).status == "rolled_back"


def test_its_gate_holds_it_and_a_person_ends_it_and_starts_it_again(site: Site) -> None:
    settings = site.settings
    site.change(a_metric_that_is_gone)
    decision = rollouts.look(settings, "m-r2").decision
    assert decision is not None
    assert (decision.kind, decision.metrics) == ("hold", ("plan",))
    assert re.match(UNREADABLE[a_metric_that_is_gone], decision.reason)
    assert "`slipway rollout reject m-r2`" in decision.reason
    assert rollouts.show(settings, "m-r2")["status"] == "held"

    challenger = rollouts.load(settings, "m-r2").challenger
    rollouts.reject(settings, "m-r2", "anna")
    rollouts.advance(settings, "m-r2")
    assert site.route("m").challenger is None
    begun = rollouts.start(settings, "m", challenger, actor="test", plan=PLAN)
    rollouts.advance(settings, begun.id)
    site.requests(0, 10)
    assert collect_all(settings) == 60
    assert counted(site.evidence(begun.id), "requests") == 10
    assert rollouts.audit(settings) == {"m": [], "other": []}


def counted(evidence: str, name: str) -> int:
    return Evidence.from_json(evidence).counted(name)
