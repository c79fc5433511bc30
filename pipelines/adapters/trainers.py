"""Trainers by the name a spec gives them."""

from __future__ import annotations

import os

from pipelines.adapters.lightgbm_trainer import LightGbmTrainer
from pipelines.adapters.sklearn_trainer import LogisticTrainer, RidgeTrainer
from pipelines.contracts.errors import SpecError
from pipelines.training.trainer import Trainer

MOST_THREADS = 8


def trainer_named(name: str, task: str) -> Trainer:
    """The trainer called `name`. Raises SpecError naming the ones that can do the task."""
    # Threads that spin while they wait cost ten times the work as soon as the cores are shared: several are used only
    # where the process was started with passive waiting (OpenMP reads it when it is loaded).
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    threads = min(os.cpu_count() or 1, MOST_THREADS) if passive else 1
    known: list[Trainer] = [LightGbmTrainer(threads), LogisticTrainer(), RidgeTrainer()]
    fitting = [trainer for trainer in known if task in trainer.tasks]
    for trainer in fitting:
        if trainer.name == name:
            return trainer
    raise SpecError(f"training.trainer for a {task} model", got=name, expected=[trainer.name for trainer in fitting])
