"""The terms of features as the specs have them now; a rollout keeps those of its beginning."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.contracts.errors import NotFoundError, SpecError
from pipelines.features.parity import Bars
from pipelines.rollout.feature_terms import FeatureTerms, ViewTerms, view_name
from pipelines.settings import Settings
from pipelines.spec.loading import load_model, load_view
from pipelines.spec.rollout import ParityGate
from pipelines.spec.view import ViewSpec
from pipelines.wiring.rollout_gate import rollout_store
from pipelines.wiring.scoring import load_release


def of_now(settings: Settings, model: str, versions: Iterable[str]) -> FeatureTerms:
    """What the specs of the model and of these views say today; views without a spec are left out."""
    try:
        gate = load_model(settings.include_dir, model).rollout.parity
    except (NotFoundError, SpecError):  # a model without a spec here has no transform of its requests either
        gate = ParityGate(inputs=False)
    views = {}
    for name in sorted({view_name(version) for version in versions}):
        try:
            views[name] = _of_view(load_view(settings.include_dir, name))
        except NotFoundError:
            continue
    return FeatureTerms(blocks=gate.gate == "block", sample=gate.sample, inputs=gate.inputs, views=views)


def of_releases(settings: Settings, model: str, releases: Iterable[str]) -> FeatureTerms:
    """The same over the views that these releases read; a release without a bundle here reads none that is seen."""
    versions = set[str]()
    for digest in releases:
        try:
            versions |= {pin.view for pin in load_release(settings, digest).manifest.views}
        except NotFoundError:
            continue
    return of_now(settings, model, versions)


def frozen_terms(settings: Settings, rollout_id: str) -> FeatureTerms | None:
    """What is frozen into a rollout; None for one of before that, or that the log alone still knows."""
    try:
        return rollout_store(settings).load(rollout_id).plan.features
    except NotFoundError:
        return None


def _of_view(spec: ViewSpec) -> ViewTerms:
    given = spec.parity
    bars = Bars(
        tolerance_rel=given.tolerance_rel,
        tolerance={name: one.tolerance for name, one in spec.features.items() if one.tolerance},
        wrong_share=given.wrong_share,
        late_share=given.late_share,
        lag_us=(given.lag or spec.publish_every).us,
    )
    return ViewTerms(freshness_us=spec.freshness.us, alert=spec.alert, bars=bars)
