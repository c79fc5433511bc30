"""`slipway new`: a dataset, a feature view or a model to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Start a new dataset, feature view or model.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Lower-case letters, digits and underscores.")]
Over = Annotated[str, typer.Option("--dataset", help="The dataset it reads.")]


@app.command()
def dataset(name: Name) -> None:
    """A dataset of a CSV file.

    Example: slipway new dataset orders
    """
    from pipelines.spec import templates

    _write(name, templates.dataset_files(name))


@app.command()
def feature(name: Name, over: Over) -> None:
    """A feature view over a dataset, with its transform.

    Example: slipway new feature order_sums --dataset orders
    """
    from pipelines.spec import templates

    _write(name, templates.view_files(name, over))


@app.command()
def model(
    name: Name,
    over: Over,
    rollout: Annotated[
        str, typer.Option(help="The challenger's way: canary (a ramp), ab (a comparison) or blue_green (a switch).")
    ] = "canary",
) -> None:
    """A model whose requests and labels come from a dataset, with its transforms.

    Example: slipway new model order_value --dataset orders
    """
    from pipelines.spec import templates

    if rollout not in templates.ROLLOUTS:
        raise typer.BadParameter(f"{rollout}; expected one of {', '.join(templates.ROLLOUTS)}")
    _write(name, templates.model_files(name, over, rollout))


def _write(name: str, files: dict[Path, str]) -> None:
    """Write the files; none when the name is not one, or any of them is there."""
    import re

    from pipelines.contracts.errors import SpecError
    from pipelines.settings import PROJECT, Settings

    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise SpecError("name", got=name, expected="lower-case letters, digits and underscores, a letter first")
    include = Settings().include_dir
    if there := [str(path) for path in files if (include / path).exists()]:
        raise SpecError(f"{', '.join(there)}", got="already there", hint="Choose another name, or edit the file.")
    for path, text in files.items():
        (include / path).parent.mkdir(parents=True, exist_ok=True)
        (include / path).write_text(text)
        shown = include / path
        print(shown.relative_to(PROJECT) if shown.is_relative_to(PROJECT) else shown)
    print("Now edit, then: slipway check")
