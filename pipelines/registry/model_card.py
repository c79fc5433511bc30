"""The model card: one page of Markdown that says what a release is, what it was made of and how good it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.contracts.clocks import from_us
from pipelines.contracts.release import Manifest

_REHEARSAL = (
    "The test part is the newest of the training set, and the model measured on it never saw it; the release was then"
    " fitted again on all labelled rows by the same recipe."
)
_SHOWN = ("log_loss", "brier", "auc", "ece", "rmse", "mae", "bias", "r2")


def model_card(
    manifest: Manifest,
    *,
    description: str,
    owner: str,
    metrics: Mapping[str, Any],
    importance: Mapping[str, float],
    gates: Sequence[str],
    training: Mapping[str, Any],
) -> str:
    """The card. `metrics` is a release's metrics.json, `gates` sentences, `training` a training set's manifest."""
    lineage = manifest.training
    span = f"{_day(training['first_event_us'])} to {_day(training['last_event_us'])}"
    return "\n".join(
        [
            f"# {manifest.model} {manifest.semver}",
            "",
            description.strip(),
            "",
            f"Owner: {owner}. Task: {manifest.task}. Version {manifest.semver}: {lineage.get('change', '')}.",
            "",
            "## Made of",
            "",
            f"- {training['labelled']:,} labelled requests, {span}, as known at {_moment(training['as_of_us'])}",
            f"- left out: {_dropped(training['dropped'])}; censored: {training['censored']:,}",
            f"- trainer {lineage['trainer']}, calibration {lineage['calibration']}",
            f"- features: {', '.join(feature.name for feature in manifest.features)}",
            f"- views: {', '.join(pin.view for pin in manifest.views) or 'none'}",
            f"- training set `{lineage['training_set'][:12]}`, spec `{lineage['spec_digest'][:12]}`",
            "",
            "## How good",
            "",
            *_metrics_table(metrics),
            "",
            _REHEARSAL,
            "",
            *(f"- gate: {sentence}" for sentence in gates),
            "",
            "## What it looks at most",
            "",
            *_importance(importance),
            "",
            "## Where it is weaker",
            "",
            *_slices(metrics),
            "",
        ]
    )


def _metrics_table(metrics: Mapping[str, Any]) -> list[str]:
    test, ours, champion = metrics["test"], metrics["same_rows"] or {}, metrics["champion"] or {}
    lines = ["| metric | test part | rows also new to the champion | champion there |", "|---|---|---|---|"]
    for name in _SHOWN:
        if name in test:
            both = " | ".join(f"{side[name]:.4f}" if name in side else "-" for side in (ours, champion))
            lines.append(f"| {name} | {test[name]:.4f} | {both} |")
    return [*lines, "", f"Compared with: {metrics['champion_note']}."]


def _importance(importance: Mapping[str, float]) -> list[str]:
    ranked = sorted(importance.items(), key=lambda pair: -pair[1])[:8]
    return [f"- {name}: {share:.0%}" for name, share in ranked]


def _slices(metrics: Mapping[str, Any]) -> list[str]:
    """The worst value of each slice by the objective."""
    objective = metrics["objective"]
    lines = []
    for name, values in metrics.get("slices", {}).items():
        measured = [(found[objective], value, found["rows"]) for value, found in values.items() if objective in found]
        if measured:
            worst = max(measured)
            lines.append(f"- {name} = {worst[1]}: {objective} {worst[0]:.4f} over {worst[2]:,.0f} rows")
    return lines or ["- no slices declared"]


def _dropped(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items()) or "nothing"


def _day(us: int) -> str:
    return from_us(us).date().isoformat()


def _moment(us: int) -> str:
    return from_us(us).isoformat(timespec="minutes")
