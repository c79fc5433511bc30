"""What a gate measures where a stage would end: how old the challenger's views are, what its features were, and what
its scores would do to the models that are given them.
"""

from __future__ import annotations

from pipelines.adapters.feast_online import readable_through
from pipelines.contracts.errors import NotFoundError
from pipelines.contracts.release import Manifest
from pipelines.rollout.conditions import Condition, Fresh, Parity
from pipelines.rollout.feature_terms import FeatureTerms
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring import feature_terms, fed_models, parity
from pipelines.wiring.scoring import load_release


def measured(settings: Settings, rollout: Rollout, event_us: int) -> tuple[Condition, ...]:
    """The conditions of leaving the rollout's stage now; none for a challenger that reads no view and feeds no model.

    The parity report of a stage is kept in the lake, under the digest that the condition names.
    """
    kind = rollout.current.kind
    if kind in ("backtest", "approval"):
        return ()
    found = _of_features(settings, rollout, event_us)
    return (*found, *fed_models.measured(settings, rollout, event_us)) if kind == "shadow" else tuple(found)


def _of_features(settings: Settings, rollout: Rollout, event_us: int) -> list[Condition]:
    try:
        manifest = load_release(settings, rollout.challenger).manifest
    except NotFoundError:  # no bundle on this host, so no view that it could be seen to read
        return []
    views = [pin.view for pin in manifest.views]
    terms = rollout.plan.features or feature_terms.of_now(settings, rollout.model, views)
    found: list[Condition] = [*freshness(settings, manifest, terms, event_us)]
    if rollout.current.kind == "shadow" and views:
        report = parity.of_stage(settings, rollout.model, rollout.id, rollout.stage, rollout.plan.features)
        parity.keep(settings, report, event_us)
        found.append(
            Parity(report=report.digest, verdict=report.verdict, sentence=report.sentence, blocks=terms.blocks)
        )
    return found


def freshness(settings: Settings, manifest: Manifest, terms: FeatureTerms, event_us: int) -> list[Fresh]:
    """How old each of a release's views is at an event time; views without terms have no SLA."""
    return [
        Fresh(
            view=version,
            readable_us=readable_through(settings, version),
            event_us=event_us,
            allowed_us=view.freshness_us,
            alert=view.alert,
        )
        for version in sorted({pin.view for pin in manifest.views})
        if (view := terms.of_view(version)) is not None
    ]
