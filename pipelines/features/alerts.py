"""Alerting rules of Prometheus for the freshness of views, from their specs: each view's own bar and alert name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.spec.view import ViewSpec

FOR = "5m"
"""How long a view has to be stale before the alert fires: a gateway that starts is no reason."""


def rules(views: Iterable[ViewSpec]) -> dict[str, Any]:
    """A rule file's content: one alert a view, over what the gateways measure of any version that a release reads.

    So the alert is raised for a champion, too, that still reads a version from before the view was changed.
    """
    listed = [
        {
            "alert": spec.alert,
            "expr": f'max by (view) (slipway_view_age_seconds{{view=~"{spec.name}__[0-9a-f]{{4}}"}}) > '
            f"{spec.freshness.us // 1_000_000}",
            "for": FOR,
            "labels": {"severity": "warn", "owner": spec.owner},
            "annotations": {
                "summary": "{{ $labels.view }} is {{ $value | humanizeDuration }} old",
                "description": f"Its spec allows {spec.freshness}. Challengers that read it do not go on. "
                "See docs/runbooks/on-call/stale-features.md.",
            },
        }
        for spec in views
    ]
    return {"groups": [{"name": "slipway_view_freshness", "rules": listed}]}
