"""What a gate measures where a stage would end: how old the challenger's views are, and what its features were."""

from __future__ import annotations

from pipelines.adapters.feast_online import readable_through
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.release import Manifest
from pipelines.rollout.conditions import Condition, Fresh, Parity
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.spec.loading import load_view
from pipelines.wiring import parity
from pipelines.wiring.scoring import load_release


def measured(settings: Settings, rollout: Rollout, event_us: int) -> tuple[Condition, ...]:
    """The conditions of leaving the rollout's stage now; none for a challenger that reads no view.

    The parity report of a stage is kept in the lake, under the digest that the condition names.
    """
    try:
        manifest = load_release(settings, rollout.challenger).manifest
    except NotFoundError:  # no bundle on this host, so no view that it could be seen to read
        return ()
    if rollout.current.kind in ("backtest", "approval"):
        return ()
    found: list[Condition] = [*freshness(settings, manifest, event_us)]
    if rollout.current.kind == "shadow" and manifest.views:
        report = parity.of_stage(settings, rollout.model, rollout.id, rollout.stage)
        parity.keep(settings, report, event_us)
        blocks = parity.blocks(settings, rollout.model)
        found.append(Parity(report=report.digest, verdict=report.verdict, sentence=report.sentence, blocks=blocks))
    return tuple(found)


def freshness(settings: Settings, manifest: Manifest, event_us: int) -> list[Fresh]:
    """How old each of a release's views is at an event time; views that no spec knows have no SLA."""
    found = []
    for version in sorted({pin.view for pin in manifest.views}):
        try:
            spec = load_view(settings.include_dir, version.rpartition("__")[0])
        except NotFoundError:
            continue
        found.append(
            Fresh(
                view=version,
                readable_us=readable_through(settings, version),
                event_us=event_us,
                allowed_us=spec.freshness.us,
                alert=spec.alert,
            )
        )
    return found
