"""What erasures took from a rollout's evidence, in words: of its log, which keeps what is folded; of its backtest."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.datasets.erasure import Erasure
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring.scoring import load_release


def erased_rows(rollout: Rollout, erasures: Sequence[Erasure]) -> list[str]:
    """What of the rollout's log was erased."""
    counts = [(each.requests(rollout.model, rollout.id), each.id) for each in erasures]
    return [
        f"{rows} rows erased by {erasure}: their payload is gone, their evidence is not"
        for rows, erasure in counts
        if rows
    ]


def taken_from_backtest(settings: Settings, rollout: Rollout, erasures: Sequence[Erasure]) -> str:
    """Which erasures took rows that the rollout's backtest may read, in words; empty for none."""
    if not erasures or not any(stage.kind == "backtest" for stage in rollout.stages):
        return ""
    arms = [digest for digest in (rollout.champion, rollout.challenger) if digest]
    views = {f"features/{pin.view}" for digest in arms for pin in load_release(settings, digest).manifest.views}
    counts = [(each.reaches(rollout.model, views), each.id) for each in erasures]
    return ", ".join(f"{rows} rows it may have read were erased by {erasure}" for rows, erasure in counts if rows)
