"""A rollout that begins while the collector runs: its evidence is complete, and costs nothing that came before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.adapters.delta_lake import DeltaLake
from pipelines.collect.case import Case
from pipelines.collect.fold import Fold
from pipelines.rollout.policy import Policy
from pipelines.rollout.state import Rollout
from pipelines.wiring import collect, rollouts
from pipelines.wiring.collect import Collector
from pipelines.wiring.live_evidence import read_log
from tests.builders import constant_release
from tests.unit.collect.installation import PLAN, Installation
from tests.unit.collect.traffic import Worker


def begin_another(installation: Installation) -> None:
    settings = installation.settings
    rollouts.reject(settings, installation.rollout, "anna")
    rollouts.advance(settings, installation.rollout)
    release = constant_release(settings.releases, "m", 0.32, semver="1.2.0")
    installation.rollout = rollouts.start(settings, "m", release, actor="test", plan=PLAN).id
    rollouts.advance(settings, installation.rollout)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rollout_that_begins_under_a_running_collector_is_not_searched_for_in_the_log(
    restarted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []

    def counted(lake: DeltaLake, rollout: Rollout, *, before_batch: int | None = None) -> dict[str, object]:
        searched.append(rollout.id)
        return dict(read_log(lake, rollout, before_batch=before_batch))

    monkeypatch.setattr(collect, "read_log", counted)
    installation = Installation(tmp_path)
    first, worker, collector = installation.rollout, Worker(installation.bus), Collector(installation.settings)
    for number in range(20):
        worker.request(installation.route, f"a{number}")
    collector.once()
    begin_another(installation)
    for part in range(3):
        for number in range(20):
            worker.request(installation.route, f"b{part}-{number}")
        if restarted:
            collector = Collector(installation.settings)
        collector.once()
    assert searched == [first, *([installation.rollout] * 3 if restarted else [])]
    policy = Policy.parse(PLAN.policy)
    rollout = rollouts.load(installation.settings, installation.rollout)
    case, fold = Case(rollout.id, "m", policy.slices, policy.kpis), Fold(policy)
    fold.add(**case.take(read_log(DeltaLake(installation.settings.lake), rollout)))
    assert fold.evidence().to_json().decode() == installation.evidence()
    assert len(case.requests) == 60
