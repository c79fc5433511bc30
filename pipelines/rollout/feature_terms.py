"""What a rollout asks of the features its releases read: frozen into its plan, so that no edit reaches it."""

from __future__ import annotations

import msgspec

from pipelines.features.parity import Bars


class ViewTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How old a view may be where a stage ends (event time, microseconds), its alert, and what parity allows."""

    freshness_us: int
    alert: str
    bars: Bars


class FeatureTerms(msgspec.Struct, frozen=True, kw_only=True):
    """A model's `rollout.parity` and the terms of each view by name. `sample`: most requests that parity compares."""

    blocks: bool = True
    sample: int = 2000
    inputs: bool = True
    views: dict[str, ViewTerms] = {}

    def of_view(self, version: str) -> ViewTerms | None:
        """The terms of the view with this version; None for one that no spec knew."""
        return self.views.get(view_name(version))

    def bars(self, version: str) -> Bars:
        """What parity allows the view; nothing at all for one that no spec knew."""
        terms = self.of_view(version)
        return terms.bars if terms is not None else Bars()


def view_name(version: str) -> str:
    """The name of the view that a version (`weather__3f2a`) is one of."""
    return version.rpartition("__")[0]
