"""The jobs of a rollout as the tasks of a DAG run call them: by id, with small JSON-ready answers."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from pipelines.contracts.errors import TerminalError
from pipelines.rollout.executor import Effect
from pipelines.rollout.state import Rollout
from pipelines.settings import Settings
from pipelines.wiring import rollouts


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """The rollout a DAG run is about. `way`: `first` asks a person, `stages` goes through the gates."""

    id: str
    model: str
    challenger: str
    champion: str | None
    status: str
    stage: str
    way: Literal["first", "stages"]


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rollout stands after what was decided has been done. `run_id` names the DAG run that would take it up."""

    id: str
    status: str
    stage: str
    run_id: str
    effects: list[Effect]


def begin(
    settings: Settings,
    model: str,
    challenger: str = "",
    rollout_id: str = "",
    actor: str = "unknown",
    as_of_us: int | None = None,
) -> Begun:
    """Start a rollout of `challenger`, or take `rollout_id` up where it stands; and do what its record orders.

    Raises TerminalError when `rollout_id` belongs to another model.
    """
    if rollout_id:
        rollout = rollouts.load(settings, rollout_id)
        if rollout.model != model:
            raise TerminalError(f"rollout {rollout_id}", got=f"model {rollout.model}", expected=model)
    else:
        rollout = rollouts.start(settings, model, challenger, as_of_us=as_of_us, actor=actor)
    rollouts.advance(settings, rollout.id)
    return _begun(rollouts.load(settings, rollout.id))


def backtest(settings: Settings, rollout_id: str) -> dict[str, Any]:
    """The challenger over logged requests; nothing when the rollout is not in its backtest."""
    return rollouts.backtest(settings, rollout_id)


def advance(settings: Settings, rollout_id: str) -> Settled:
    """Do and confirm what was decided; nothing when nothing is open."""
    effects = rollouts.advance(settings, rollout_id)
    rollout = rollouts.load(settings, rollout_id)
    run_id = f"{rollout.id}__{rollout.revision}"
    return Settled(id=rollout.id, status=rollout.status, stage=rollout.stage, run_id=run_id, effects=effects)


def _begun(rollout: Rollout) -> Begun:
    return Begun(
        id=rollout.id,
        model=rollout.model,
        challenger=rollout.challenger,
        champion=rollout.champion,
        status=rollout.status,
        stage=rollout.stage,
        way="first" if rollout.champion is None else "stages",
    )
