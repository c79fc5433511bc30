"""Versions of a view: those that live releases read are kept going and never removed; all others can be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.adapters import feast_registry
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.adapters.feast_online import readable_through
from pipelines.cli import feature as cli
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.release import ViewPin
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.spec.loading import load_view
from pipelines.wiring import feature_catalogue, features, lineage, rollouts, view_versions
from tests.builders import constant_release
from tests.unit.features.shop_project import Shop, every_hour
from tests.unit.rollout.examples import POLICY

PLAN = Plan(stages=from_spec([{"name": "shadow", "requests": 100}]), policy=POLICY)
WHOLE = Plan(stages=from_spec([{"name": "shadow", "requests": 100}, {"name": "bake", "requests": 50}]), policy=POLICY)


class Versions(Shop):
    """Three versions of the view, oldest first: nobody's, the champion's, and that of the spec now."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.tell(every_hour(0, 100), 100)
        self.settings.event_clock().tick(self.at(100))
        self.versions = []
        transform = self.settings.include_dir / "transforms" / "shop.py"
        for hours in (11, 23, 47):
            transform.write_text(re.sub(r"hours=\d+", f"hours={hours}", transform.read_text()))
            feast_registry.apply(self.settings, [load_view(self.settings.include_dir, "shop")])
            view_versions.refresh_pinned(self.settings, "shop", self.at(100))
            self.versions.append(features.refresh(self.settings, "shop", self.at(100)).version)
        self.champion = constant_release(self.settings.releases, "buys", 0.3, views=[self.pin(self.versions[1])])
        first = rollouts.start(self.settings, "buys", self.champion, actor="test", plan=PLAN)
        rollouts.approve(self.settings, first.id, "anna")
        rollouts.advance(self.settings, first.id)

    def pin(self, version: str) -> ViewPin:
        """How a release reads a version."""
        keys = {"entity": {"shop": "shop"}, "join_key_types": {"shop": "string"}}
        return ViewPin(view=version, features=["buyers"], **keys)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Versions:
    return Versions(tmp_path_factory.mktemp("versions"))


def test_the_version_that_the_champion_reads_is_kept_going_by_its_own_definition(made: Versions) -> None:
    made.tell(every_hour(100, 124), 124)
    nobodys, champions, _ = made.versions
    (kept,) = view_versions.refresh_pinned(made.settings, "shop", made.at(124))
    assert (kept.version, kept.through_us) == (champions, made.at(124))
    assert readable_through(made.settings, champions) == made.at(124)
    assert readable_through(made.settings, nobodys) == made.at(100)
    lake, late = DeltaLake(made.settings.lake), "event_timestamp = TIMESTAMPTZ '2024-01-05 20:00:00+00'"
    assert lake.read(features.table_of(champions), where=late).num_rows == 1
    assert lake.read(features.table_of(nobodys), where=late).num_rows == 0


def test_the_catalogue_names_live_releases_and_older_versions(made: Versions) -> None:
    entry = feature_catalogue.entry(made.settings, "shop")
    assert entry.version == made.versions[2]
    assert {version: [pin.role for pin in pins] for version, pins in entry.older_versions.items()} == {
        made.versions[0]: [], made.versions[1]: ["champion"]
    }  # fmt: skip
    assert (entry.freshness.state, entry.freshness.alert) == ("fresh", "SlipwayViewStale")


def test_lineage_goes_from_the_dataset_to_the_live_release_and_back(made: Versions) -> None:
    found = lineage.lineage(made.settings, "sales")
    assert (f"view:{made.versions[1]}", f"release:{made.champion}") in found.edges
    assert ("dataset:sales", f"view:{made.versions[2]}") in found.edges
    back = lineage.lineage(made.settings, made.champion)
    assert {node.kind for node in back.nodes} == {"dataset", "view", "release"}
    with pytest.raises(NotFoundError, match="Did you mean"):
        lineage.lineage(made.settings, "salse")


def test_the_commands_print_what_there_is(made: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIPWAY_HOME", str(made.settings.home))
    monkeypatch.setenv("SLIPWAY_INCLUDE_DIR", str(made.settings.include_dir))
    monkeypatch.setenv("SLIPWAY_CLOCK", "replay")
    run = CliRunner().invoke
    nobodys, champions, current = made.versions
    for verb in (["list"], ["show", "shop"], ["lineage", "shop"]):
        told = run(cli.app, [*verb, "--json"])
        assert current in json.dumps(json.loads(told.output))
        assert run(cli.app, verb).exit_code == 0
    differs = run(cli.app, ["diff", nobodys, champions])
    assert differs.exit_code == 1
    assert "-    last = " in differs.output
    assert "hours=23" in differs.output
    assert run(cli.app, ["diff", current, current]).exit_code == 0
    assert "removable: " + nobodys in run(cli.app, ["gc"]).output


def test_garbage_is_listed_first_then_removed_everywhere_and_what_is_read_stays(tmp_path: Path) -> None:
    made = Versions(tmp_path)
    nobodys, champions, current = made.versions
    settings = made.settings

    def kept() -> dict[str, str]:
        assert view_versions.collect_garbage(settings, remove=True) == []
        return {version: pins[0].role for version, pins in view_versions.pinned(settings).items()}

    challenger = constant_release(settings.releases, "buys", 0.4, semver="1.1.0", views=[made.pin(nobodys)])
    rollout = rollouts.start(settings, "buys", challenger, actor="test", plan=WHOLE).id
    rollouts.advance(settings, rollout)
    assert kept() == {champions: "champion", nobodys: "challenger"}
    rollouts.skip(settings, rollout, "anna", "no traffic here")
    rollouts.advance(settings, rollout)
    assert rollouts.load(settings, rollout).stage == "bake"
    assert kept() == {champions: "fallback", nobodys: "champion"}, "it takes over when the bake fails"
    rollouts.skip(settings, rollout, "anna", "no traffic here")
    rollouts.advance(settings, rollout)
    assert rollouts.load(settings, rollout).status == "promoted"
    assert kept() == {champions: "fallback", nobodys: "champion"}, "a person may still go back to it"
    rollouts.rollback(settings, rollout, "anna", "it was better before")
    rollouts.advance(settings, rollout)

    (listed,) = view_versions.collect_garbage(made.settings)
    assert (listed.version, listed.lake, listed.online, listed.removed) == (nobodys, True, True, False)
    assert nobodys in view_versions.versions(made.settings)
    (removed,) = view_versions.collect_garbage(made.settings, remove=True)
    assert removed.removed
    assert view_versions.versions(made.settings) == {champions, current}
    assert [one.version for one in feast_registry.registered(made.settings)] == sorted([champions, current])
    assert view_versions.collect_garbage(made.settings, remove=True) == []
    with pytest.raises(NotFoundError, match="definition of a view version"):
        view_versions.difference(made.settings, nobodys, current)
