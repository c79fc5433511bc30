"""One picture of a release's evaluation: calibration (or residuals), the test part by day, importance, the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.training.metrics import OBJECTIVE, Vector, calibration_curve, losses

_DAY_US = 86_400_000_000
_BLUE, _GREY = "#2f6db5", "#9aa5b1"


def evaluation_plot(
    path: Path,
    *,
    title: str,
    task: str,
    event_us: npt.NDArray[np.int64],
    label: Vector,
    score: Vector,
    importance: Mapping[str, float],
    trials: Sequence[Mapping[str, Any]],
) -> None:
    """Write the picture as PNG. The rows are the test part's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    _fit_panel(axes[0, 0], task, label, score)
    day = (event_us // _DAY_US).astype("datetime64[D]")
    days, place = np.unique(day, return_inverse=True)
    loss = np.bincount(place, weights=losses(task, label, score)) / np.bincount(place)
    axes[0, 1].plot(days, loss, marker="o", markersize=3, color=_BLUE)
    axes[0, 1].set(title="loss by day (test part)", ylabel="log loss" if task == "binary" else "squared error")
    axes[0, 1].tick_params(axis="x", rotation=30)
    ranked = sorted(importance.items(), key=lambda pair: pair[1])[-12:]
    axes[1, 0].barh([name for name, _ in ranked], [share for _, share in ranked], color=_BLUE)
    axes[1, 0].set(title="importance")
    axes[1, 1].plot([t["number"] for t in trials], [t["value"] for t in trials], marker="o", color=_BLUE)
    axes[1, 1].set(title="study (validation part)", xlabel="trial", ylabel=OBJECTIVE[task])
    figure.savefig(path, dpi=80)


def _fit_panel(axes: Any, task: str, label: Vector, score: Vector) -> None:
    if task == "binary":
        mean, share, rows = calibration_curve(label, score)
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
        axes.scatter(mean, share, s=10 + 190 * rows / rows.max(), color=_BLUE)
        axes.set(title="calibration", xlabel="mean score", ylabel="label share", xlim=(0, 1), ylim=(0, 1))
    else:
        axes.hist(score - label, bins=60, color=_BLUE)
        axes.set(title="score minus label", ylabel="rows")
