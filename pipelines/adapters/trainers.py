"""Trainers by the name a spec gives them."""

from __future__ import annotations

from pipelines.adapters.lightgbm_trainer import LightGbmTrainer
from pipelines.adapters.sklearn_trainer import LogisticTrainer, RidgeTrainer
from pipelines.contracts.errors import SpecError
from pipelines.training.trainer import Trainer


def trainer_named(name: str, task: str) -> Trainer:
    """The trainer called `name`. Raises SpecError naming the ones that can do the task."""
    known: list[Trainer] = [LightGbmTrainer(), LogisticTrainer(), RidgeTrainer()]
    fitting = [trainer for trainer in known if task in trainer.tasks]
    for trainer in fitting:
        if trainer.name == name:
            return trainer
    raise SpecError(f"training.trainer for a {task} model", got=name, expected=[trainer.name for trainer in fitting])
