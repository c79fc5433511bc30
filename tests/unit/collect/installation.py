"""An installation with one model, a champion and a rollout in its shadow stage, for tests of the collector."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.adapters.control_db import control_db
from pipelines.adapters.delta_lake import DeltaLake
from pipelines.collect import quarantine
from pipelines.contracts.events import KINDS
from pipelines.contracts.routes import Route
from pipelines.rollout.policy import Policy
from pipelines.rollout.stages import from_spec
from pipelines.rollout.state import Plan
from pipelines.settings import Settings
from pipelines.wiring import rollouts
from tests.builders import constant_release

STAGES: list[dict[str, Any]] = [
    {"name": "shadow", "requests": 1000},
    {"name": "canary_20", "share": 0.2, "requests": 1000},
    {"name": "bake", "requests": 100},
]
POLICY = {
    "stages": STAGES,
    "slices": ["origin"],
    "score_range": [0.0, 1.0],
    "label_maturity_s": 5,
    "metrics": [
        {"name": "error_rate", "kind": "event", "harm_ratio": 1.5, "promote_margin_abs": 0.02, "weight": 0.3},
        {"name": "invalid_score", "kind": "event", "weight": 0.2},
        {"name": "logloss", "kind": "paired_loss", "harm_rel": 0.01, "promote_margin_rel": 0.03, "weight": 0.2},
    ],
}
PLAN = Plan(stages=from_spec(STAGES), policy=Policy.parse(POLICY).to_mapping())


def stored_labels(settings: Settings) -> list[tuple[int, int]]:
    """Epoch and counter of every label in the lake."""
    rows = DeltaLake(settings.lake).read("inference/label", ["epoch", "n"]).to_pylist()
    return [(row["epoch"], row["n"]) for row in rows]


class Installation:
    """`route` is what a gateway would follow now."""

    def __init__(self, home: Path, control_url: str = "", plan: Plan = PLAN) -> None:
        self.settings = Settings(home=home, control_url=control_url)
        self.db = control_db(self.settings)
        self.champion = constant_release(self.settings.releases, "m", 0.3)
        self.challenger = constant_release(self.settings.releases, "m", 0.31, semver="1.1.0")
        first = rollouts.start(self.settings, "m", self.champion, actor="test", plan=plan)
        rollouts.approve(self.settings, first.id, "anna")
        rollouts.advance(self.settings, first.id)
        self.rollout = rollouts.start(self.settings, "m", self.challenger, actor="test", plan=plan).id
        rollouts.advance(self.settings, self.rollout)

    @property
    def bus(self) -> Path:
        return self.settings.bus

    @property
    def route(self) -> Route:
        found = self.db.route("m")
        assert found is not None
        return found

    def table(self, kind: str) -> pa.Table:
        """The rows of a kind in the lake, in the collector's order."""
        lake = DeltaLake(self.settings.lake)
        name = f"inference/{kind}"
        return lake.read(name).sort_by("seq") if lake.exists(name) else pa.table({"n": pa.array([], pa.int64())})

    def stored(self) -> list[tuple[str, int, int, int]]:
        """Event ids in the lake, over all kinds, in the collector's order."""
        found: list[tuple[int, tuple[str, int, int, int]]] = []
        for kind in KINDS:
            rows = self.table(kind).to_pylist()
            found += [(row["seq"], (row["gateway"], row["worker"], row["epoch"], row["n"])) for row in rows]
        return [event_id for _, event_id in sorted(found)]

    def quarantined(self) -> list[tuple[tuple[str, int, int, int], str]]:
        """Event ids in quarantine with the reasons."""
        lake = DeltaLake(self.settings.lake)
        rows = lake.read(quarantine.TABLE).to_pylist() if lake.exists(quarantine.TABLE) else []
        return sorted(((row["gateway"], row["worker"], row["epoch"], row["n"]), row["reason"]) for row in rows)

    def evidence(self) -> str:
        """The rollout's evidence as stored."""
        rows = rollouts.rollout_store(self.settings).view(self.rollout).evidence
        return next(row.document for row in rows if row.part == "live")


def copied(template: Path, home: Path) -> Installation:
    """An installation of its own over a copy of `template`."""
    shutil.copytree(template, home)
    made = Installation.__new__(Installation)
    made.settings = Settings(home=home)
    made.db = control_db(made.settings)
    route = made.route
    made.champion, made.challenger, made.rollout = route.champion, str(route.challenger), str(route.rollout_id)
    return made
