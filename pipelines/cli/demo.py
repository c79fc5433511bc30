"""`slipway demo`: the rehearsal of a year."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def demo(
    variant: Annotated[
        str, typer.Option(help="standard, repaired-v3, calm-december or same-model: other inputs, other outcomes.")
    ] = "standard",
    seed: Annotated[int, typer.Option(help="Seed of training; other seeds make other models.")] = 7,
    size: Annotated[
        float,
        typer.Option(
            help="Length of the stages, as a multiple of those in the specs; below 1 later acts have less to train on."
        ),
    ] = 1.0,
) -> None:
    """Carry a model through a year in minutes, with real DAG runs and a real gateway; the stack stays up.

    Example: slipway demo --variant repaired-v3
    """
    from rich.console import Console

    from pipelines.demo.run import run
    from pipelines.demo.story import VARIANTS
    from pipelines.settings import Settings

    if variant not in VARIANTS:
        raise typer.BadParameter(f"got {variant}; expected one of {', '.join(VARIANTS)}", param_hint="--variant")
    console = Console(width=None if sys.stdout.isatty() else 140)
    ok, _ = run(Settings(), variant=variant, seed=seed, size=size, console=console)
    if not ok:
        raise typer.Exit(1)
